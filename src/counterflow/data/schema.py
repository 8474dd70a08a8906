"""What a user declares about an AnnData (`Setup`), and the check that the data are what was declared.

`setup_anndata` writes one JSON-able dict to ``adata.uns["_counterflow"]`` and touches nothing else. All problems found are
reported together, each with what, where and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.data.dropping import kept_cells, missing_values
from counterflow.data.labels import distinct_rows, parts, texts
from counterflow.data.matrix import as_csr, counts_from_log1p, log_normalised, matrix_problems, place
from counterflow.data.source import BATCH
from counterflow.data.stored import is_stored, layer_problem, library_sizes, stored, stored_problems
from counterflow.errors import DataError, near, warn

if TYPE_CHECKING:
    from anndata import AnnData

UNS_KEY = "_counterflow"
MATRIX_STATES = ("counts", "log1p")
_SAME = 1e-5  # log1p values nearer than this are rounding
SPLIT_LEVELS = ("train", "val", "test")


@dataclass(frozen=True)
class Setup:
    """The declaration of one screen: which columns say what was done, and what the matrix holds."""

    perturbation_key: str
    control: str
    layer: str | None = None
    matrix_state: Literal["counts", "log1p"] = "counts"
    covariate_keys: tuple[str, ...] = ()
    match_keys: tuple[str, ...] = ()
    dose_key: str | None = None
    time_key: str | None = None
    library_size_key: str | None = None
    delimiter: str = "+"
    split_key: str | None = None
    drop_missing: bool = False
    drop_empty_cells: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setup:
        """Inverse of `to_dict`; unknown names are refused."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise DataError(f"unknown setup option {name!r}: {near(name, known)}")
        values = {**values, "control": str(values["control"])} if "control" in values else values  # 0 in a column of numbers is "0"
        return cls(**{**values, **{key: _names(values.get(key, ())) for key in ("covariate_keys", "match_keys")}})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def obs_keys(self) -> dict[str, str]:
        """Every obs column that the declaration names: column -> the option that named it."""
        single = {
            "perturbation_key": self.perturbation_key,
            "dose_key": self.dose_key,
            "time_key": self.time_key,
            "library_size_key": self.library_size_key,
            "split_key": self.split_key,
        }
        columns = {column: option for option, column in single.items() if column is not None}
        return columns | dict.fromkeys(self.covariate_keys, "covariate_keys") | dict.fromkeys(self.match_keys, "match_keys")


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def declare(adata: AnnData, setup: Setup) -> None:
    """Verify `adata` against `setup` and write the declaration to ``adata.uns``; raises before anything is written."""
    from counterflow.data.remarks import remarks

    kept = kept_cells(adata, setup)
    raise_problems(problems(kept, setup), "this AnnData cannot be used as declared")
    if kept.n_obs < adata.n_obs:
        warn(
            f"{adata.n_obs - kept.n_obs} of {adata.n_obs} cells are left out: no label (drop_missing) or no count (drop_empty_cells)",
            above=2,
        )
    for text in remarks(kept, setup):
        warn(text, above=2)
    adata.uns[UNS_KEY] = setup.to_dict()


def setup_of(adata: AnnData) -> Setup:
    """The declaration stored by `setup_anndata`."""
    if UNS_KEY not in adata.uns:
        raise DataError("this AnnData was not declared: call CounterFlow.setup_anndata(adata, perturbation_key=..., control=...) first")
    stored = adata.uns[UNS_KEY]
    return Setup.from_dict(
        {name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in stored.items()}
    )


def raise_problems(found: Sequence[str], title: str) -> None:
    """One DataError for all problems found, or nothing."""
    if len(found) == 1:
        raise DataError(found[0])
    if found:
        raise DataError(f"{title}, {len(found)} problems:\n" + "\n".join(f"  {i}. {text}" for i, text in enumerate(found, 1)))


def problems(adata: AnnData, setup: Setup) -> list[str]:
    """Everything that stops this AnnData from being used as declared (empty list: nothing)."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        return [f"the AnnData has {adata.n_obs} cells and {adata.n_vars} genes: nothing to learn from"]
    if odd := _option_problems(setup):
        return odd  # nothing can be read with them
    found = [*_name_problems(adata), *_obs_problems(adata, setup), *layer_problems(adata, setup)]
    return found or _variation_problems(adata, setup)


def general_problems(adata: AnnData, layer: str | None, matrix_state: Literal["counts", "log1p"]) -> list[str]:
    """What is wrong with an AnnData whatever its columns mean."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        return [f"the AnnData has {adata.n_obs} cells and {adata.n_vars} genes: nothing to learn from"]
    if is_stored(adata, layer):
        return [*_name_problems(adata), *stored_problems(adata, Setup("", "", layer=layer, matrix_state=matrix_state))]
    return [*_name_problems(adata), *matrix_problems(adata, layer, matrix_state)]


def _option_problems(setup: Setup) -> list[str]:
    found = []
    if setup.matrix_state not in MATRIX_STATES:
        found.append(f"matrix_state={setup.matrix_state!r} is unknown: {near(setup.matrix_state, MATRIX_STATES)}")
    if not setup.delimiter:
        found.append("delimiter is empty: give the character that joins combinations, e.g. '+'")
    for name in ("drop_missing", "drop_empty_cells"):
        if not isinstance(getattr(setup, name), bool):
            found.append(f"{name}={getattr(setup, name)!r} must be True or False")
    return found


def _name_problems(adata: AnnData) -> list[str]:
    names = adata.var_names
    if names.is_unique:
        return []
    doubled = names[names.duplicated()].unique()
    advice = "make them unique, e.g. adata.var_names_make_unique()"
    return [f"{len(doubled)} duplicate gene names in var_names ({listed(doubled)}): {advice}"]


def listed(names: Any) -> str:
    """The first three."""
    return ", ".join(repr(str(name)) for name in names[:3])


def _obs_problems(adata: AnnData, setup: Setup) -> list[str]:
    found, bad = [], set()
    for key, option in setup.obs_keys.items():
        if key not in adata.obs:
            found.append(f"{option}={key!r} is not a column of adata.obs: {near(key, adata.obs.columns)}")
            bad.add(key)
        elif (missing := missing_values(adata.obs[key])).any():
            where = f"{int(missing.sum())} cells have no value in adata.obs[{key!r}] (first: {listed(adata.obs_names[missing])})"
            found.append(f"{where}: {_mend_missing(setup)}")
            bad.add(key)
    readable = not bad.intersection(setup.match_keys)
    if setup.perturbation_key not in bad:
        found += _control_problems(adata, setup, contexts_readable=readable)
    found += numeric_problems(adata, _without(setup, bad))
    if not bad.intersection((setup.split_key, setup.perturbation_key)):
        found += _split_problems(adata, setup, contexts_readable=readable)
    return found


def _mend_missing(setup: Setup) -> str:
    if setup.drop_missing:
        return "take them out with counterflow.kept_cells(adata)"
    return "fill it in, or leave these cells out with drop_missing=True"


def _without(setup: Setup, bad: set[str]) -> Setup:
    """The declaration without the columns of numbers that cannot be read."""
    dose = None if bad.intersection((setup.dose_key, setup.perturbation_key)) else setup.dose_key
    time, library = (None if key in bad else key for key in (setup.time_key, setup.library_size_key))
    return replace(setup, dose_key=dose, time_key=time, library_size_key=library)


def _control_problems(adata: AnnData, setup: Setup, *, contexts_readable: bool) -> list[str]:
    labels = texts(adata.obs[setup.perturbation_key])
    control = is_control_mask(labels, setup)
    if not control.any():
        counts = labels.value_counts()
        there = ", ".join(f"{name!r} ({count})" for name, count in counts.iloc[:5].items())
        more = f", and {len(counts) - 5} more" if len(counts) > 5 else ""
        hint = near(setup.control, counts.index)
        meant = f"{hint} The" if hint.startswith("did you mean") else "the"
        return [f"no cell of adata.obs[{setup.perturbation_key!r}] is the control {setup.control!r}: {meant} labels are {there}{more}"]
    if control.all():
        return [f"every cell of adata.obs[{setup.perturbation_key!r}] is the control {setup.control!r}: there is no perturbation to learn"]
    nameless = [label for label in labels[control].unique() if setup.control.strip() not in label]
    if nameless:
        return [
            f"the labels {listed(nameless)} of adata.obs[{setup.perturbation_key!r}] name nothing: write {setup.control!r} for controls"
        ]
    if setup.match_keys and contexts_readable:
        rows, context = distinct_rows(adata.obs, setup.match_keys)
        bare = sorted(" / ".join(rows[code]) for code in set(context[~control].tolist()) - set(context[control].tolist()))
        if bare:
            return [
                f"{len(bare)} levels of match_keys={list(setup.match_keys)} have no control cell ({listed(bare)}): "
                "drop a key or these cells"
            ]
    return []


def numeric_problems(adata: AnnData, setup: Setup) -> list[str]:
    """What is wrong with times, library sizes and doses."""
    found = []
    for option, key in (("time_key", setup.time_key), ("library_size_key", setup.library_size_key)):
        if key is None:
            continue
        values = pd.to_numeric(texts(adata.obs[key]), errors="coerce").to_numpy()
        bad = ~np.isfinite(values) | (values < 0)
        if bad.any():
            example = adata.obs[key].to_numpy()[bad][0]
            found.append(f"{option}={key!r} must hold numbers >= 0: {int(bad.sum())} cells do not (first: {example!r})")
    if setup.dose_key is not None:
        for label, dose in sorted(distinct_rows(adata.obs, [setup.perturbation_key, setup.dose_key])[0]):
            try:
                parse_doses(dose, len(parts(label, setup.delimiter, setup.control)), setup)
            except DataError as error:
                found.append(f"perturbation {label!r}: {error}")
                break
    return found


def _split_problems(adata: AnnData, setup: Setup, *, contexts_readable: bool) -> list[str]:
    if setup.split_key is None:
        return []
    levels = texts(adata.obs[setup.split_key])
    odd = sorted(set(levels) - set(SPLIT_LEVELS))
    if odd:
        return [f"split_key={setup.split_key!r} may hold 'train', 'val' and 'test' only, found {odd[0]!r}"]
    train, control = levels == "train", is_control_mask(texts(adata.obs[setup.perturbation_key]), setup)
    if not (train & control).any() or not (train & ~control).any():
        return [f"split_key={setup.split_key!r} leaves no {'control' if not (train & control).any() else 'perturbed'} cell in 'train'"]
    if setup.match_keys and contexts_readable:
        rows, context = distinct_rows(adata.obs, setup.match_keys)
        without = set(context[train & ~control].tolist()) - set(context[train & control].tolist())
        if bare := sorted(" / ".join(rows[code]) for code in without):
            return [f"split_key={setup.split_key!r} leaves no control cell in 'train' in {len(bare)} levels of match_keys ({listed(bare)})"]
    return []


def layer_problems(adata: AnnData, setup: Setup) -> list[str]:
    """What is wrong with the matrix, and with library sizes that contradict it."""
    if is_stored(adata, setup.layer):
        missing = layer_problem(adata, setup.layer)
        return stored_problems(adata, setup) if missing is None else [missing]
    if setup.layer is not None and setup.layer not in adata.layers:
        return [f"layer={setup.layer!r} is not in adata.layers: {near(setup.layer, adata.layers)}"]
    found = matrix_problems(adata, setup.layer, setup.matrix_state)
    library = None
    if setup.library_size_key is not None and setup.library_size_key in adata.obs:
        library = pd.to_numeric(adata.obs[setup.library_size_key].astype(str), errors="coerce").to_numpy()
    if found or (library is not None and not np.isfinite(library).all()):
        return found
    if setup.matrix_state == "log1p":
        try:
            counts_from_log1p(as_csr(adata, setup.layer), library)
        except DataError as error:
            return [str(error)]
        if library is not None and (none := (library <= 0) & (np.diff(as_csr(adata, setup.layer).indptr) > 0)).any():
            found.append(f"library_size_key={setup.library_size_key!r} is 0 in {int(none.sum())} cells that have values")
    elif library is not None and (short := library + 0.5 < np.asarray(as_csr(adata, setup.layer).sum(1)).ravel()).any():
        found.append(
            f"library_size_key={setup.library_size_key!r} is smaller than the sum over the genes of the file in {int(short.sum())} cells: "
            "it must count all genes of the cell"
        )
    return found


def _variation_problems(adata: AnnData, setup: Setup) -> list[str]:
    """Training cells that are all the same; of an AnnData without other problems."""
    train = np.ones(adata.n_obs, dtype=bool) if setup.split_key is None else (texts(adata.obs[setup.split_key]) == "train").to_numpy()
    if is_stored(adata, setup.layer):
        return _same_everywhere(adata, setup, np.flatnonzero(train))
    csr = as_csr(adata, setup.layer)[train]
    key = setup.library_size_key
    library = None if key is None else pd.to_numeric(adata.obs[key].astype(str)).to_numpy()[train]
    return [] if _varies(csr, library, setup) else [_sameness(csr.shape[0], setup)]


def _same_everywhere(adata: AnnData, setup: Setup, train: np.ndarray) -> list[str]:
    """Whether any of the training cells on disk is different: nearly always the first ones are."""
    counts, library = stored(adata, setup).counts, library_sizes(adata.obs, setup)
    for start in range(0, len(train), BATCH - 1):
        rows = np.concatenate([train[:1], train[start : start + BATCH - 1]])  # the first cell stands for those before
        if _varies(counts[rows], None if library is None else library[rows], replace(setup, matrix_state="counts")):
            return []
    return [_sameness(len(train), setup)]


def _varies(csr: sparse.csr_matrix, library: np.ndarray | None, setup: Setup) -> bool:
    """Whether cells differ by more than their library sizes."""
    measured = np.bincount(csr.indices, minlength=csr.shape[1])
    if ((measured > 0) & (measured < csr.shape[0])).any():  # zero in some cells and not in others: nearly always
        return True
    if setup.matrix_state == "counts":
        csr = log_normalised(csr, np.asarray(csr.sum(1)).ravel() if library is None else library)
    return bool((np.ptp(csr.toarray(), axis=0) > _SAME).any())


def _sameness(n_cells: int, setup: Setup) -> str:
    return f"{place(setup.layer)} is the same in all {n_cells} training cells, but for their library sizes: nothing to learn from"


def is_control_mask(labels: pd.Series, setup: Setup) -> np.ndarray:
    """True where a label has no perturbation left once the control's name is taken out."""
    codes, distinct = pd.factorize(labels)
    return np.array([not parts(label, setup.delimiter, setup.control) for label in distinct], dtype=bool)[codes]


def parse_doses(value: object, n_parts: int, setup: Setup) -> tuple[float, ...]:
    """Doses of the parts: one number for all of them, or one per part joined by the delimiter (in the order of the label)."""
    if n_parts == 0:
        return ()
    words = str(value).split(setup.delimiter) if setup.delimiter in str(value) and not _is_number(value) else [str(value)]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise DataError(f"dose {value!r} is not a number, nor numbers joined by {setup.delimiter!r}") from None
    if any(not np.isfinite(number) or number < 0 for number in numbers):
        raise DataError(f"dose {value!r} must be finite and >= 0")
    if len(numbers) == 1:
        return numbers * n_parts
    if len(numbers) != n_parts:
        raise DataError(f"dose {value!r} has {len(numbers)} numbers for {n_parts} perturbations")
    return numbers


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
