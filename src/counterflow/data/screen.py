"""A declared AnnData as arrays: counts, library sizes, and one integer per cell for its condition and its context."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterflow.data.dropping import missing_values
from counterflow.data.labels import distinct_rows, parts, texts
from counterflow.data.ledger import CellKeys
from counterflow.data.matrix import as_csr, counts_from_log1p
from counterflow.data.names import cell_names
from counterflow.data.schema import (
    Setup,
    is_control_mask,
    layer_problems,
    listed,
    numeric_problems,
    parse_doses,
    problems,
    raise_problems,
)
from counterflow.data.source import CellSource, take_genes, take_rows
from counterflow.data.stored import is_stored, library_sizes, stored
from counterflow.errors import ConfigError, DataError, near, warn
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


MISSING_GENES = ("error", "zero")
_MOST_MISSING = 0.1  # of the model's genes: with more of them at zero, the cells are not what the model was trained on


@dataclass(frozen=True)
class Screen:
    """Cells of one AnnData: everything the rest of the house needs from it. n cells, G genes, M covariates."""

    counts: CellSource  # n x G, integers as float32: in memory, or rows of a file
    library: np.ndarray  # n, counts per cell over all genes of the cell
    genes: tuple[str, ...]
    cells: Any  # n, names: a tuple, an array, or `Names`
    conditions: tuple[ConditionSpec, ...]  # the distinct ones; position 0 is always the control
    condition: np.ndarray  # n, position in `conditions`
    contexts: tuple[tuple[str, ...], ...]  # the distinct levels of `match_keys`
    context: np.ndarray  # n, position in `contexts`
    covariates: pd.DataFrame  # n x M, strings
    split: np.ndarray  # n, "train" | "val" | "test"

    @property
    def is_control(self) -> np.ndarray:
        """True for control cells."""
        return self.condition == 0

    @cached_property
    def keys(self) -> CellKeys:
        """What a ledger knows these cells by."""
        return CellKeys.of(self.cells, self.counts, self.genes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything in it: a run is resumed on the same cells only. The same however the counts are stored."""
        digest = hashlib.sha256(json.dumps([self.genes, self.conditions, self.contexts]).encode())
        for values in (self.keys.name, self.keys.content, self.library):
            digest.update(np.ascontiguousarray(values).data)
        for codes in (self.condition, self.context, *(pd.factorize(self.covariates[name])[0] for name in self.covariates)):
            digest.update(codes.astype(np.int64).data)
        levels = {str(name): sorted(map(str, pd.unique(self.covariates[name]))) for name in self.covariates}
        digest.update(json.dumps(levels).encode())
        return digest.hexdigest()

    def rows(self, chosen: np.ndarray) -> Screen:
        """The same screen with the chosen cells (a mask, or positions); condition and context codes keep their meaning."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if len(index) == len(self.cells) and np.array_equal(index, np.arange(len(index))):
            return self
        cells = self.cells
        fewer = Screen(
            take_rows(self.counts, index),
            self.library[index],
            self.genes,
            tuple(cells[i] for i in index) if isinstance(cells, tuple) else cells[index],
            self.conditions,
            self.condition[index],
            self.contexts,
            self.context[index],
            self.covariates.iloc[index].reset_index(drop=True),
            self.split[index],
        )
        if "keys" in self.__dict__:  # known already: not read again
            fewer.__dict__["keys"] = self.keys.rows(index)
        return fewer

    def on_genes(self, genes: Sequence[str]) -> Screen:
        """The same cells with these genes, in this order; library sizes stay."""
        return replace(self, counts=take_genes(self.counts, gene_positions(self.genes, genes)), genes=tuple(genes))


def read_screen(adata: AnnData, setup: Setup, genes: Sequence[str] | None = None) -> Screen:
    """Verify `adata` against `setup` and read it; `genes` selects and orders the columns by name."""
    raise_problems(problems(adata, setup), "this AnnData cannot be used as declared")
    counts, library = read_counts(adata, setup)
    specs, condition = _conditions(adata.obs, setup)
    distinct = sorted(set(specs) - {ConditionSpec()}, key=lambda spec: (len(spec.parts), spec))
    conditions = (ConditionSpec(), *distinct)
    code = {spec: i for i, spec in enumerate(conditions)}
    context, contexts = read_contexts(adata.obs, setup)
    if genes is not None:
        counts = take_genes(counts, gene_positions(adata.var_names, genes))
    return Screen(
        counts=counts,
        library=library,
        genes=tuple(adata.var_names) if genes is None else tuple(genes),
        cells=cell_names(adata.obs_names),
        conditions=conditions,
        condition=np.array([code[spec] for spec in specs], dtype=np.int32)[condition],
        contexts=contexts,
        context=context,
        covariates=_covariates(adata.obs, setup),
        split=_splits(adata.obs, setup),
    )


def _covariates(obs: pd.DataFrame, setup: Setup) -> pd.DataFrame:
    return pd.DataFrame({key: texts(obs[key]).to_numpy() for key in setup.covariate_keys}, index=pd.RangeIndex(len(obs)))


def _splits(obs: pd.DataFrame, setup: Setup) -> np.ndarray:
    """Of every cell; with no column of them all are for training, which takes no memory."""
    if setup.split_key is None:
        return np.broadcast_to(np.array("train"), len(obs))
    rows, codes = distinct_rows(obs, [setup.split_key])
    return np.array([level for (level,) in rows], dtype=object)[codes]


def read_cells(
    adata: AnnData, setup: Setup, genes: Sequence[str], *, controls_only: bool = True, missing_genes: str = "error"
) -> tuple[Screen, np.ndarray]:
    """Cells to start from, and their positions in `adata`: nothing need have been done to them (the perturbation column may be absent).

    `missing_genes`: what is done where `adata` lacks some of `genes`, an ``error`` or ``zero`` counts (of a tenth of them at most).
    """
    if adata.n_obs == 0:
        raise DataError("no cells were given: predictions start from control cells")
    keys = [*setup.covariate_keys, *setup.match_keys, *filter(None, [setup.library_size_key])]
    missing = [key for key in dict.fromkeys(keys) if key not in adata.obs]
    found = [f"adata.obs has no column {key!r} (declared in setup_anndata): {near(key, adata.obs.columns)}" for key in missing]
    for key in dict.fromkeys([*setup.covariate_keys, *setup.match_keys]):
        if key in adata.obs and (empty := missing_values(adata.obs[key])).any():
            found.append(
                f"{int(empty.sum())} cells have no value in adata.obs[{key!r}] (first: {listed(adata.obs_names[empty])}): fill it in"
            )
    if not missing:
        found += numeric_problems(adata, replace(setup, time_key=None, dose_key=None))  # of cells to start from, the library size only
    columns = gene_positions(adata.var_names, genes, missing_genes=missing_genes)
    raise_problems([*found, *layer_problems(adata, replace(setup, library_size_key=None))], "these cells cannot be used")
    positions = np.arange(adata.n_obs)
    if controls_only and setup.perturbation_key in adata.obs:
        positions = np.flatnonzero(is_control_mask(texts(adata.obs[setup.perturbation_key]), setup))
        if not len(positions):
            raise DataError(
                f"none of these cells is a control ({setup.perturbation_key} = {setup.control!r}): predictions start from control cells"
            )
    counts, library = read_counts(adata, setup)
    obs = adata.obs.iloc[positions]
    context, contexts = read_contexts(obs, setup)
    n = len(positions)
    screen = Screen(
        take_genes(take_rows(counts, positions), columns),
        library[positions],
        tuple(genes),
        cell_names(obs.index),
        (ConditionSpec(),),
        np.zeros(n, dtype=np.int32),
        contexts,
        context,
        _covariates(obs, setup),
        np.full(n, "train"),
    )
    return screen, positions


def read_counts(adata: AnnData, setup: Setup) -> tuple[CellSource, np.ndarray]:
    """Integer counts (n x G) and library sizes (n)."""
    library = library_sizes(adata.obs, setup)
    if is_stored(adata, setup.layer):
        counts, _, totals = stored(adata, setup)
        return counts, totals if library is None else library
    csr = as_csr(adata, setup.layer)
    if setup.matrix_state == "log1p":
        csr = counts_from_log1p(csr, library)
    if library is None:
        library = np.asarray(csr.sum(1), dtype=np.float32).ravel()
    return csr, library


def read_specs(obs: pd.DataFrame, setup: Setup) -> list[ConditionSpec]:
    """The condition of every row; controls are the empty set at dose 0 and time 0."""
    specs, codes = _conditions(obs, setup)
    return [specs[code] for code in codes.tolist()]


def _conditions(obs: pd.DataFrame, setup: Setup) -> tuple[list[ConditionSpec], np.ndarray]:
    """Conditions as they are written (some may be the same), and which of them every row has."""
    keys = [setup.perturbation_key, *(key for key in (setup.dose_key, setup.time_key) if key is not None)]
    rows, codes = distinct_rows(obs, keys)
    return [_spec(row, setup) for row in rows], codes


def _spec(row: tuple[str, ...], setup: Setup) -> ConditionSpec:
    label, *rest = row
    names = parts(label, setup.delimiter, setup.control)
    if not names:
        return ConditionSpec()
    doses = (1.0,) * len(names)
    if setup.dose_key is not None:
        # doses are written in the order of the label, parts come sorted: sort both together
        written = [word for word in (w.strip() for w in label.split(setup.delimiter)) if word and word != setup.control]
        doses = tuple(dose for _, dose in sorted(zip(written, parse_doses(rest.pop(0), len(names), setup), strict=True)))
    return ConditionSpec(names, doses, _time(rest[0]) if setup.time_key is not None else 0.0)


def _time(value: str) -> float:
    try:
        time = float(value)
    except ValueError:
        raise DataError(f"time {value!r} is not a number") from None
    if not 0 <= time < float("inf"):
        raise DataError(f"time {value!r} must be finite and >= 0")
    return time


def read_contexts(obs: pd.DataFrame, setup: Setup) -> tuple[np.ndarray, tuple[tuple[str, ...], ...]]:
    """Which controls belong with which cells: one code per distinct level of `match_keys`."""
    rows, codes = distinct_rows(obs, setup.match_keys)
    contexts = tuple(sorted(rows))
    code = {level: i for i, level in enumerate(contexts)}
    return np.array([code[row] for row in rows], dtype=np.int32)[codes], contexts


def gene_positions(have: Iterable[str], want: Sequence[str], *, missing_genes: str | None = None) -> np.ndarray:
    """Columns of `want` in `have`, by name; one that is there twice is an error, and so is a missing one unless it may be ``zero`` (-1)."""
    if missing_genes not in (None, *MISSING_GENES):
        raise ConfigError(f"missing_genes={missing_genes!r} is unknown: {near(missing_genes, MISSING_GENES)}")
    names = list(have)
    position = {name: i for i, name in enumerate(names)}
    if len(position) < len(names) and (doubled := sorted({name for i, name in enumerate(names) if position[name] != i} & set(want))):
        raise DataError(f"{len(doubled)} genes of the model are in var_names more than once (first: {doubled[0]!r}): keep one of each")
    missing = [name for name in want if name not in position]
    if missing:
        kind = ""
        if any(name.startswith("ENS") for name in position) != any(name.startswith("ENS") for name in want):
            kind = " (one side has Ensembl ids, the other gene symbols)"
        said = f"{len(missing)} of the model's {len(want)} genes are not in var_names ({listed(missing)}){kind}"
        if missing_genes != "zero":
            few = missing_genes is not None and len(missing) <= _MOST_MISSING * len(want)
            raise DataError(f"{said}: give cells with all of them" + (", or count them as zero with missing_genes='zero'" if few else ""))
        if len(missing) > _MOST_MISSING * len(want):
            raise DataError(f"{said}: missing_genes='zero' allows {_MOST_MISSING:.0%} of them at most")
        warn(f"{said}: they count as zero")
    return np.array([position.get(name, -1) for name in want], dtype=np.int64)


def condition_label(spec: ConditionSpec, setup: Setup) -> str:
    """The name of a condition as the user would write it in the perturbation column."""
    return setup.delimiter.join(spec.parts) if spec.parts else setup.control


def write_condition(obs: pd.DataFrame, spec: ConditionSpec, setup: Setup) -> None:
    """Put a condition into the declared columns of `obs` (changed in place), as `read_specs` reads it."""
    obs[setup.perturbation_key] = condition_label(spec, setup)
    if setup.dose_key is not None:
        doses = setup.delimiter.join(f"{dose:g}" for dose in spec.doses) if len(set(spec.doses)) > 1 else (spec.doses or (0.0,))[0]
        obs[setup.dose_key] = doses
    if setup.time_key is not None:
        obs[setup.time_key] = spec.time


def describe(spec: ConditionSpec, setup: Setup) -> str:
    """The name of a condition with its dose and time, unique within a screen."""
    text = condition_label(spec, setup)
    if setup.dose_key is not None and spec.parts:
        text += " dose " + setup.delimiter.join(f"{dose:g}" for dose in spec.doses)
    return text + (f" time {spec.time:g}" if setup.time_key is not None and spec.parts else "")


def requested(conditions: str | Sequence[str] | pd.DataFrame, setup: Setup) -> pd.DataFrame:
    """What the user asks for, as a table with the setup's columns: a name, names, or a DataFrame with the setup keys as columns."""
    if isinstance(conditions, pd.DataFrame):
        table = conditions.reset_index(drop=True)
    else:
        names = [conditions] if isinstance(conditions, str) else list(conditions)
        table = pd.DataFrame({setup.perturbation_key: [str(name) for name in names]})
    if not len(table):
        raise ConfigError("conditions is empty: name at least one, e.g. conditions='KLF1+MAP2K6'")
    needed = [key for key in (setup.perturbation_key, setup.dose_key, setup.time_key) if key is not None]
    allowed = [*needed, *setup.covariate_keys, *setup.match_keys]
    for column in table.columns:
        if column not in allowed:
            raise ConfigError(f"conditions has a column {column!r} that setup_anndata did not name: {near(column, allowed)}")
    for key in needed:
        if key not in table:
            columns = ", ".join(map(repr, needed))
            raise ConfigError(
                f"this model also needs {key!r} for every condition: give conditions as a DataFrame with the columns {columns}"
            )
    return table
