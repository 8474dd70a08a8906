"""Proof that a fit does not look at held-out cells, without trusting what it says: spoil these cells, fit again, compare.

Whatever a pipeline learns from (gene selection, PCA, autoencoder, scaler, features, early stopping, calibration), if no held-out
cell had a part in it then its predictions from the same controls cannot change by one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.ledger import STAGES
from counterflow.data.schema import Setup, setup_of
from counterflow.data.screen import read_screen
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

MOST_CONDITIONS = 20
MOST_CONTROLS = 60


class Predictor(Protocol):
    """What a fit returns: a `CounterFlow`, a baseline, yours."""

    def predict(self, adata: AnnData, conditions: pd.DataFrame, /) -> AnnData:
        """Control cells under other conditions."""
        ...


@runtime_checkable
class HasFittedParts(Protocol):
    """A predictor that can show what was fitted, so that a difference can be traced to its stage."""

    def fitted_parts(self) -> Mapping[str, Mapping[str, NDArray]]:
        """Stage -> name -> numbers."""
        ...


def poison_test(
    fit: Callable[[AnnData], Predictor], adata: AnnData, *, subset: str = "test", conditions: pd.DataFrame | None = None, seed: int = 0
) -> str:
    """Fit twice, the second time with garbage in all cells of `subset`; predictions must agree to the bit.

    Parameters
    ----------
    fit
        Your whole pipeline, from the declared AnnData to something with ``predict(controls, conditions)``: every step that you want
        proven has to be inside. It is given a copy each time. Few training steps are enough.
    adata
        Declared with ``split_key``. It is not changed.
    subset
        The set that must not be looked at.
    conditions
        What is predicted, a table with the setup's columns; None: the conditions of `adata`, at most 20, held-out ones first.
    seed
        Of the garbage.

    Returns
    -------
    str
        What was compared.

    Raises
    ------
    DataError
        If anything changed, saying what; or if the fit gives other results on the same data, which proves nothing.
    """
    setup = setup_of(adata)
    if setup.split_key is None:
        raise DataError("nothing is held out: fill a column with train | val | test (build_split) and declare it as split_key")
    screen = read_screen(adata, setup)
    rows = np.flatnonzero(screen.split == subset)
    if not len(rows):
        raise DataError(f"no cell of adata.obs[{setup.split_key!r}] is in {subset!r}: there is nothing to spoil")
    start = np.flatnonzero(screen.is_control & (screen.split == "train"))
    controls = adata[start[np.linspace(0, len(start) - 1, min(MOST_CONTROLS, len(start))).astype(int)]].copy()
    table = _conditions(adata, setup, subset) if conditions is None else conditions
    spoilt = poisoned(adata, rows, seed)
    before, after = (_outcome(fit, data, controls, table) for data in (adata, spoilt))
    changed = _differences(before, after)
    if changed and _differences(before, _outcome(fit, adata, controls, table)):
        raise DataError("the poison test proves nothing: two fits on the same data differ; fix the seed, and take one thread")
    if changed:
        raise DataError(
            f"the poison test found a leak: with garbage in the {len(rows)} {subset} cells the fit is another one ({'; '.join(changed)}): "
            f"some step of it reads {subset} cells"
        )
    return (
        f"poison test passed: with garbage in the {len(rows)} {subset} cells, {before['prediction'].n_obs} predicted cells "
        f"({len(table)} conditions) stay the same to the bit"
    )


def poisoned(adata: AnnData, rows: NDArray[np.intp], seed: int = 0) -> AnnData:
    """A copy in which the expression of these cells is garbage: genes shuffled in each cell, then multiplied by 2 to 7.

    X, all layers, ``raw`` and ``obsm`` are spoilt, and the declared library size. The garbage stays what the matrix was declared to be.
    """
    setup, rng = setup_of(adata), np.random.default_rng([seed, 6])
    orders = np.array([rng.permutation(adata.n_vars) for _ in rows])
    factor = rng.integers(2, 8, len(rows))
    result = adata.to_memory() if adata.isbacked else adata.copy()

    def spoil(matrix: Any, layer: str | None) -> Any:
        logged = setup.matrix_state == "log1p" and layer == setup.layer
        return _garbage(matrix, rows, orders, factor, logged)

    if result.X is not None:
        result.X = spoil(result.X, None)
    for name in list(result.layers):
        result.layers[name] = spoil(result.layers[name], name)
    for name, values in list(result.obsm.items()):
        dense = _dense(values).copy()
        if dense.dtype.kind in "biuf":
            dense[rows] = (rng.permutation(dense[rows].ravel()) * 3).reshape(dense[rows].shape).astype(dense.dtype)
            if isinstance(values, pd.DataFrame):
                result.obsm[name] = pd.DataFrame(dense, values.index, values.columns)
            else:
                result.obsm[name] = sparse.csr_matrix(dense).asformat(values.format) if sparse.issparse(values) else dense
    if result.raw is not None:
        import anndata

        more = np.array([rng.permutation(result.raw.n_vars) for _ in rows])
        result.raw = anndata.AnnData(_garbage(result.raw.X, rows, more, factor, False), obs=result.obs[[]], var=result.raw.var)
    if setup.library_size_key is not None:
        library = pd.to_numeric(result.obs[setup.library_size_key].astype(str)).to_numpy(dtype=float)
        library[rows] *= factor
        result.obs[setup.library_size_key] = library
    return result


def _garbage(matrix: Any, rows: NDArray, orders: NDArray, factor: NDArray, logged: bool) -> Any:
    """The matrix with these rows shuffled along genes and multiplied (before the logarithm, where there is one)."""
    dense = np.asarray(matrix[rows].toarray() if sparse.issparse(matrix) else matrix[rows], dtype=np.float64)
    shuffled = np.take_along_axis(dense, orders, axis=1)
    new = np.log1p(factor[:, None] * np.expm1(shuffled)) if logged else factor[:, None] * shuffled
    kind = matrix.dtype if matrix.dtype.kind == "f" else np.dtype(np.int64)
    if not sparse.issparse(matrix):
        result = np.array(matrix, dtype=kind)
        result[rows] = new.astype(kind)
        return result
    others = np.setdiff1d(np.arange(matrix.shape[0]), rows)
    stacked = sparse.vstack([sparse.csr_matrix(matrix)[others].astype(kind), sparse.csr_matrix(new.astype(kind))], format="csr")
    return stacked[np.argsort(np.concatenate([others, rows]))].asformat(matrix.format)


def _conditions(adata: AnnData, setup: Setup, subset: str) -> pd.DataFrame:
    """Conditions of the screen as a request, those of `subset` first."""
    keys = [key for key in (setup.perturbation_key, setup.dose_key, setup.time_key) if key is not None]
    held_out = (adata.obs[setup.split_key].astype(str) == subset).to_numpy()
    table = pd.concat([adata.obs[keys][held_out], adata.obs[keys][~held_out]]).drop_duplicates()
    return table[table[setup.perturbation_key].astype(str) != setup.control].iloc[:MOST_CONDITIONS].reset_index(drop=True)


def _outcome(fit: Callable[[AnnData], Predictor], adata: AnnData, controls: AnnData, table: pd.DataFrame) -> dict[str, Any]:
    predictor = fit(adata.copy())
    parts = predictor.fitted_parts() if isinstance(predictor, HasFittedParts) else {}
    return {"parts": parts, "prediction": predictor.predict(controls.copy(), table)}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two outcomes, in words."""
    changed = [
        f"{STAGES.get(stage, stage)} changed"
        for stage in before["parts"]
        if not _same_parts(before["parts"][stage], after["parts"].get(stage, {}))
    ]
    a, b = before["prediction"], after["prediction"]
    if list(a.var_names) != list(b.var_names):
        return [*changed, f"{len(set(a.var_names) - set(b.var_names))} of {a.n_vars} predicted genes are others"]
    if list(a.obs_names) != list(b.obs_names):
        return [*changed, "other cells are predicted"]
    for name, one, two in [("X", a.X, b.X), *((f"layers[{key!r}]", a.layers[key], b.layers.get(key)) for key in a.layers)]:
        one, two = _dense(one), _dense(two)
        if not np.array_equal(one, two, equal_nan=True):
            cells = (one != two).any(1)
            changed.append(
                f"predicted {name} differs in {int(cells.sum())} of {len(cells)} cells, by up to {np.nanmax(np.abs(one - two)):.3g}"
            )
    for column in a.obs:
        if column in b.obs and list(a.obs[column].astype(str)) != list(b.obs[column].astype(str)):
            changed.append(f"the predicted obs[{column!r}] differs")
    return changed


def _same_parts(one: Mapping[str, NDArray], two: Mapping[str, NDArray]) -> bool:
    return set(one) == set(two) and all(_equal(one[name], two[name]) for name in one)


def _equal(one: NDArray, two: NDArray) -> bool:
    return np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def _dense(matrix: Any) -> NDArray:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
