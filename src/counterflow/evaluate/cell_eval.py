"""Predicted and real cells as the pairs of files that scorers written by others read: `cell-eval2`, `cell-eval`, and any DE tool.

Both files of a pair have the same genes in the same order, the same labels in ``obs["target"]``, and the same real control cells
under the label ``non-targeting``; X is CSR float32. Contexts (levels of ``match_keys``) never share a pair: effects are measured
from the controls of the same context.

=============  ===================================================================================================
``lognorm``    log1p of counts per 10,000 of the cell's full library (``library_size_key``); the scale of `evaluate`
``counts``     integers; needed by the challenge preset of `cell-eval2`, which normalises over the genes of the file
=============  ===================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.matrix import as_csr, log_normalised
from counterflow.data.schema import Setup, setup_of
from counterflow.data.screen import Screen, describe, gene_positions, read_contexts, read_screen, read_specs
from counterflow.data.split_file import SEPARATOR
from counterflow.data.stored import read_cells_at
from counterflow.errors import ConfigError, DataError, near
from counterflow.evaluate.truth import read_units

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.evaluate.evaluate import Predictor

InputType = Literal["lognorm", "counts"]

CONTROL = "non-targeting"
REAL = "real"
LARGEST_TOTAL = 1e6  # counts of a cell, or behind its logarithms: the scorers refuse more


def to_cell_eval(
    predictors: Mapping[str, Predictor],
    adata: AnnData,
    out: str | Path,
    *,
    subset: str = "test",
    input_type: InputType = "lognorm",
    n_cells: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Path]]:
    """Predict every held-out condition and write what `cell-eval2` and `cell-eval` score.

    Parameters
    ----------
    predictors
        Name -> trained predictor: a `CounterFlow`, a baseline, yours. All are given the same control cells.
    adata
        Declared with ``split_key``.
    out
        Folder for the files: ``real.h5ad`` and one ``<name>.h5ad`` per predictor, in a folder per context where there are `match_keys`.
    subset
        The set that is exported: ``test``, or ``val`` while choosing.
    input_type
        ``lognorm`` or ``counts`` (predictors must then return ``layers["counts"]``).
    n_cells
        Predicted cells per condition, at most as many as there are controls. Default: as many as real ones, since tests of
        differential expression call more genes the more cells there are. More cells make predicted means less noisy.
    seed
        Of the choice of control cells that predictions start from.

    Returns
    -------
    dict
        Context -> (``"real"`` or a predictor's name) -> file. Without `match_keys` there is one context, ``""``.

    Raises
    ------
    ConfigError
        If names cannot be told apart as files, or an option does not exist.
    DataError
        If no cell is held out, a context has no controls, or a prediction is not what `input_type` says.

    Examples
    --------
    >>> for files in cf.evaluate.to_cell_eval({"model": model}, adata, "export").values():  # doctest: +SKIP
    ...     print(cell_eval2.compute_metrics(str(files["model"]), str(files["real"]), input_type="lognorm"))

    Notes
    -----
    The scorers look for the perturbed gene under the label. Labels of combinations, compounds and cytokines are no genes: give
    `cell-eval2` ``target_gene_map={"*": None}`` (``--no-target-genes``), or a map from label to gene. With a single condition in a
    context its discrimination score is 1 for everything.
    """
    _check_options(input_type, n_cells)
    if REAL in predictors:
        raise ConfigError(f"{REAL!r} is the name of the file with the real cells: give your predictor another name")
    stems = _stems([REAL, *predictors])
    screen, setup, units, _ = read_units(adata, subset)
    contexts = {unit.context: unit.context_code for unit in units}
    folders = _stems(contexts)
    files = {}
    for context, code in contexts.items():
        here = [unit for unit in units if unit.context_code == code]
        controls = _controls(screen, code)
        predicted: dict[str, dict[str, AnnData]] = {name: {} for name in predictors}
        for unit in here:
            wanted = len(unit.real) if n_cells is None else n_cells
            sources = np.sort(np.random.default_rng([seed, unit.number]).permutation(controls)[:wanted])
            for name, predictor in predictors.items():
                predicted[name][unit.condition] = predictor.predict(read_cells_at(adata, setup, sources), unit.request)
        genes = _common_genes(screen, (cells for of_name in predicted.values() for cells in of_name.values()))
        real = _real(screen, code, {unit.condition: unit.real for unit in here}, genes, input_type)
        folder = Path(out) / folders[context]
        folder.mkdir(parents=True, exist_ok=True)
        files[context] = {name: folder / f"{stems[name]}.h5ad" for name in stems}
        _anndata(real, genes).write_h5ad(files[context][REAL], compression="gzip")
        for name, of_condition in predicted.items():
            parts = {label: _predicted(cells, genes, input_type, f"{name!r}, {label!r}") for label, cells in of_condition.items()}
            _anndata({CONTROL: real[CONTROL], **parts}, genes).write_h5ad(files[context][name], compression="gzip")
    return files


def cell_eval_pairs(predicted: AnnData, adata: AnnData, *, input_type: InputType = "lognorm") -> dict[str, tuple[AnnData, AnnData]]:
    """Given predicted cells beside the real cells of the same conditions, as `to_cell_eval` writes them.

    Parameters
    ----------
    predicted
        What `CounterFlow.predict`, `CounterFlow.generate` or a baseline returned, of any conditions and contexts of `adata`, with the
        declared columns in ``obs``. Predicted controls are left out: real ones take their place.
    adata
        Declared; holds real cells of every predicted condition, and the controls of every context.
    input_type
        ``lognorm`` or ``counts``.

    Returns
    -------
    dict
        Context -> (prediction, real).

    Raises
    ------
    DataError
        If `adata` has no real cells, or no controls, to compare with, or `predicted` is not what `input_type` says.
    """
    _check_options(input_type, None)
    setup = setup_of(adata)
    screen = read_screen(adata, setup)
    missing = [key for key in _condition_keys(setup) if key not in predicted.obs]
    if missing:
        raise DataError(f"the predicted cells have no column {missing[0]!r}: {near(missing[0], predicted.obs.columns)}")
    genes = _common_genes(screen, [predicted])
    specs = read_specs(predicted.obs, setup)
    distinct = sorted({spec for spec in specs if spec.parts})
    number = {spec: i for i, spec in enumerate(distinct)}
    condition = np.array([number.get(spec, -1) for spec in specs])
    context, levels = read_contexts(predicted.obs, setup)
    pairs = {}
    for code, level in enumerate(levels):
        name = SEPARATOR.join(level)
        if level not in screen.contexts:
            raise DataError(f"adata has no cell of context {name!r}: {near(name, map(SEPARATOR.join, screen.contexts))}")
        measured = screen.context == screen.contexts.index(level)
        rows, parts = {}, {}
        for i in np.unique(condition[(context == code) & (condition >= 0)]):
            label = describe(distinct[i], setup)
            code_of = screen.conditions.index(distinct[i]) if distinct[i] in screen.conditions else -1
            rows[label] = np.flatnonzero(measured & (screen.condition == code_of))
            if not len(rows[label]):
                raise DataError(f"adata has no real cell of {f'{label} {name}'.strip()!r}: there is nothing to compare the prediction with")
            cells = predicted[(context == code) & (condition == i)]
            parts[label] = _predicted(cells, genes, input_type, repr(label))
        if not rows:
            continue
        real = _real(screen, screen.contexts.index(level), rows, genes, input_type)
        pairs[name] = _anndata({CONTROL: real[CONTROL], **parts}, genes), _anndata(real, genes)
    if not pairs:
        raise DataError("no predicted cell is perturbed: there is nothing to score")
    return pairs


def _check_options(input_type: str, n_cells: int | None) -> None:
    if input_type not in get_args(InputType):
        raise ConfigError(f"input_type={input_type!r} does not exist: {near(input_type, get_args(InputType))}")
    if n_cells is not None and n_cells < 2:
        raise ConfigError(f"n_cells={n_cells}: at least 2 cells per condition are needed")


def _condition_keys(setup: Setup) -> list[str]:
    optional = [key for key in (setup.dose_key, setup.time_key) if key is not None]
    return list(dict.fromkeys([setup.perturbation_key, *optional, *setup.match_keys]))


def _stems(names: Iterable[str]) -> dict[str, str]:
    """Name -> what it is called as a file; "/" and the like become "_"."""
    stems = {name: re.sub(r"[^\w+. -]", "_", name) for name in names}
    taken: dict[str, str] = {}
    for name, stem in stems.items():
        if stem.strip(".") == "" and stem:
            raise ConfigError(f"{name!r} cannot be the name of a file: choose another one")
        if stem.lower() in taken:
            raise ConfigError(f"{taken[stem.lower()]!r} and {name!r} would be the same file: choose names that differ in letters or digits")
        taken[stem.lower()] = name
    return stems


def _controls(screen: Screen, code: int) -> NDArray[np.intp]:
    """Positions of the control cells of a context."""
    controls = np.flatnonzero(screen.is_control & (screen.context == code))
    if len(controls) < 2:
        name = SEPARATOR.join(screen.contexts[code]) or "adata"
        raise DataError(f"{name} has {len(controls)} control cells: effects are measured from the controls of the same context, give some")
    return controls


def _common_genes(screen: Screen, predictions: Iterable[AnnData]) -> tuple[str, ...]:
    """The genes that every prediction has, in the order of the screen."""
    genes = screen.genes
    for cells in predictions:
        genes = tuple(gene for gene in genes if gene in cells.var_names)
    if not genes:
        raise DataError("the predictions have no gene in common with adata")
    return genes


def _real(
    screen: Screen, code: int, rows: Mapping[str, NDArray[np.intp]], genes: tuple[str, ...], input_type: InputType
) -> dict[str, sparse.csr_matrix]:
    """Label -> real cells of a context, the controls first."""
    if CONTROL in rows:
        raise DataError(f"a perturbation is called {CONTROL!r}, as the scorers call control cells: declare it as the control, or rename it")
    columns = gene_positions(screen.genes, genes)
    parts = {}
    for label, chosen in {CONTROL: _controls(screen, code), **rows}.items():
        counts = screen.counts[chosen]
        matrix = (counts if input_type == "counts" else log_normalised(counts, screen.library[chosen]))[:, columns]
        parts[label] = _checked(matrix, input_type, f"real cells of {label!r}")
    return parts


def _predicted(cells: AnnData, genes: tuple[str, ...], input_type: InputType, what: str) -> sparse.csr_matrix:
    if input_type == "counts" and "counts" not in cells.layers:
        raise DataError(f"the prediction of {what} has no layers['counts']: export it with input_type='lognorm'")
    if cells.n_obs < 2:
        raise DataError(f"the prediction of {what} holds {cells.n_obs} cells: at least 2 are needed")
    matrix = as_csr(cells, "counts" if input_type == "counts" else None)
    return _checked(matrix[:, gene_positions(cells.var_names, genes)], input_type, f"the prediction of {what}")


def _checked(matrix: sparse.csr_matrix, input_type: InputType, what: str) -> sparse.csr_matrix:
    """Refuse what the scorers refuse, and what they would score without noticing."""
    values = matrix.data
    if not np.isfinite(values).all():
        raise DataError(f"{what} holds numbers that are not finite")
    if values.size and values.min() < 0:
        raise DataError(f"{what} holds negative values (smallest {values.min():.4g}), which no scorer takes: clip them at 0")
    integers = bool(values.size) and np.array_equal(values, np.rint(values))
    if input_type == "counts" and values.size and not integers:
        raise DataError(f"{what} holds counts that are not integers: give integers, or export with input_type='lognorm'")
    if input_type == "lognorm" and integers:
        raise DataError(f"{what} holds only integers, so X is not log1p of counts per 10,000: normalise it")
    with np.errstate(over="ignore"):
        largest = float((matrix if input_type == "counts" else matrix.expm1()).sum(1, dtype=np.float64).max())
    if largest >= LARGEST_TOTAL:
        advice = "export with input_type='lognorm'" if input_type == "counts" else "X must be log1p of counts per 10,000"
        raise DataError(f"{what} has a cell of {largest:.4g} counts, the scorers take less than {LARGEST_TOTAL:.0e}: {advice}")
    matrix.sort_indices()
    return matrix


def _anndata(parts: Mapping[str, sparse.csr_matrix], genes: tuple[str, ...]) -> AnnData:
    from anndata import AnnData

    target = np.repeat(list(parts), [matrix.shape[0] for matrix in parts.values()])
    names = [f"{label} {i}" for label, matrix in parts.items() for i in range(matrix.shape[0])]
    obs = pd.DataFrame({"target": pd.Categorical(target)}, index=names)
    return AnnData(sparse.vstack(list(parts.values()), format="csr", dtype=np.float32), obs=obs, var=pd.DataFrame(index=list(genes)))


__all__ = ["CONTROL", "LARGEST_TOTAL", "REAL", "InputType", "cell_eval_pairs", "to_cell_eval"]
