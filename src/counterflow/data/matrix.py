"""The expression matrix of an AnnData as canonical CSR float32 counts, checked before anything is densified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from counterflow.data.values import Values, value_problems
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM = 1e4
_CLOSE = 0.1  # values this near to a whole number of units are counts


def raw_matrix(adata: AnnData, layer: str | None) -> sparse.csr_matrix | np.ndarray:
    """X or a layer, in memory; other sparse formats become CSR. The user's object is never modified.

    Raises
    ------
    DataError
        If there is no X, or a sparse matrix is damaged: converting or densifying one writes out of bounds.
    """
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError("the AnnData has no X: name a layer with layer=...")
    if hasattr(matrix, "to_memory"):  # backed
        matrix = matrix.to_memory()
    if not sparse.issparse(matrix):
        return np.asarray(matrix)
    if broken := structure_problem(matrix):
        raise DataError(f"{place(layer)} is a damaged sparse matrix: {broken}; write the file again from its source")
    return matrix if matrix.format == "csr" else sparse.csr_matrix(matrix)


def place(layer: str | None) -> str:
    """How messages call X or a layer."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def structure_problem(matrix: sparse.spmatrix) -> str | None:
    """What is wrong with the indices of a CSR or CSC matrix; a corrupt one densifies without any error."""
    if matrix.format not in ("csr", "csc"):
        return None
    indptr, indices = matrix.indptr, matrix.indices
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in (indptr, indices, matrix.data)):
        return "its parts are no lists of numbers"
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        return "its pointers or indices are no whole numbers"
    n_lines, n_entries = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    if len(indptr) != n_lines + 1 or indptr[0] != 0 or indptr[-1] > len(indices) or np.any(np.diff(indptr) < 0):
        return f"its {'row' if matrix.format == 'csr' else 'column'} pointers are corrupt"
    if len(indices) and (indices.min() < 0 or indices.max() >= n_entries):
        worst = indices.min() if indices.min() < 0 else indices.max()
        what = "genes" if matrix.format == "csr" else "cells"
        return f"it holds an index of {int(worst)}, but there are {n_entries} {what}"
    if len(indices) != len(matrix.data):
        return "it has different numbers of values and indices"
    return None


def matrix_problems(adata: AnnData, layer: str | None, matrix_state: str) -> list[str]:
    """Every reason why the matrix is not what `matrix_state` says."""
    where = place(layer)
    try:
        matrix = raw_matrix(adata, layer)
    except DataError as error:
        return [str(error)]
    if not (np.issubdtype(matrix.dtype, np.number) or matrix.dtype == bool):
        return [f"{where} has dtype {matrix.dtype}, not numbers"]
    values = Values()
    values.add(matrix)
    return value_problems(values, matrix_state, where, lambda at: named(adata, at), lambda: _counted(adata, layer))


def named(adata: AnnData, at: tuple[int, int]) -> str:
    """Cell and gene of a position, in words."""
    return f"cell {adata.obs_names[at[0]]!r}, gene {adata.var_names[at[1]]!r}"


def _counted(adata: AnnData, layer: str | None) -> list[str]:
    """Other matrices that hold counts."""
    counted = [repr(name) for name in adata.layers if name != layer and _looks_like_counts(adata.layers[name])]
    return ["X (layer=None)", *counted] if layer is not None and _looks_like_counts(adata.X) else counted


def _values(matrix: Any) -> np.ndarray:
    """The stored values: of a sparse matrix those that are not zero."""
    return np.asarray(matrix.data if sparse.issparse(matrix) else matrix)


def _looks_like_counts(matrix: Any) -> bool:
    values = _values(matrix)
    return bool(np.issubdtype(values.dtype, np.number) and values.size and values.min() >= 0 and np.array_equal(values, np.rint(values)))


def matrix_remarks(adata: AnnData, layer: str | None) -> list[str]:
    """What does not stop a fit: cells without a count, genes that say nothing, a matrix stored by genes. Of a matrix without problems."""
    stored = adata.X if layer is None else adata.layers[layer]
    csr, found = as_csr(adata, layer), []
    n_cells, n_genes = csr.shape
    if getattr(stored, "format", "csr") == "csc":
        found.append(f"{place(layer)} is stored by genes (CSC): it is converted whenever it is read; .tocsr() once saves that")
    measured = np.bincount(csr.indices, minlength=n_genes)
    constant = measured == 0
    if len(everywhere := np.flatnonzero(measured == n_cells)):
        columns = csr[:, everywhere]
        constant[everywhere] = columns.max(axis=0).toarray().ravel() == columns.min(axis=0).toarray().ravel()
    return [*found, *sparse_remarks(adata, np.flatnonzero(np.diff(csr.indptr) == 0), np.flatnonzero(constant))]


def sparse_remarks(adata: AnnData, empty: np.ndarray, constant: np.ndarray) -> list[str]:
    """What is said of cells without a count, and of genes that are the same everywhere."""
    found = []
    if len(empty):
        found.append(
            f"{len(empty)} cells have no count at all (first: {_names(adata.obs_names, empty)}): they are kept as zeros; "
            "leave them out with drop_empty_cells=True"
        )
    if len(constant):
        found.append(
            f"{len(constant)} genes have the same value in every cell (first: {_names(adata.var_names, constant)}): they teach nothing"
        )
    return found


def _names(names: Any, positions: np.ndarray) -> str:
    return ", ".join(repr(str(names[i])) for i in positions[:3])


def as_csr(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """The matrix as canonical CSR float32: a copy where anything had to change. Dense, CSC, backed and views give the same bits."""
    return canonical(raw_matrix(adata, layer))


def canonical(matrix: sparse.csr_matrix | np.ndarray) -> sparse.csr_matrix:
    """CSR, float32, each row sorted, nothing twice and no zeros; the given matrix is not changed."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    if csr.indptr.dtype != csr.indices.dtype:  # SciPy would convert all of them whenever some rows are taken
        csr = sparse.csr_matrix((csr.data, csr.indices, csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format:
        if csr.indices is getattr(matrix, "indices", None) or np.shares_memory(csr.data, getattr(matrix, "data", csr.data)):
            csr = csr.copy()
        csr.sum_duplicates()
    if csr.nnz and not csr.data.all():
        csr = csr.copy()
        csr.eliminate_zeros()
    return csr


def log_normalised(counts: sparse.csr_matrix, library: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts per 10,000 of the library (n x G, float32), the scale on which everything is scored; zeros stay zeros."""
    return counts.multiply((TARGET_SUM / np.maximum(library, 1.0))[:, None]).tocsr().astype(np.float32).log1p()


def counts_from_log1p(csr: sparse.csr_matrix, library: np.ndarray | None) -> sparse.csr_matrix:
    """Integer counts behind log1p-normalised values: the unit of a cell is one count.

    With `library` (counts of the cell over all genes; normalised to 1e4 is assumed) the unit is known; without it, it is the
    smallest value of the cell, or a half or a third of that.
    """
    counts, failed = recovered(csr, library)
    if problem := unrecovered_problem(failed, csr.shape[0]):
        raise DataError(problem)
    return counts


def unrecovered_problem(failed: int, n_cells: int) -> str | None:
    """What is said where the counts of too many cells cannot be told."""
    if failed <= 0.01 * n_cells:
        return None
    return (
        f"the counts behind the log1p values cannot be recovered in {failed} of {n_cells} cells: "
        "give the layer that holds the counts, or library_size_key=... if the values were normalised to 1e4 counts"
    )


def recovered(csr: sparse.csr_matrix, library: np.ndarray | None) -> tuple[sparse.csr_matrix, int]:
    """The counts behind log1p values, cell by cell, and in how many cells no unit fits."""
    out = csr.astype(np.float64, copy=True)
    np.expm1(out.data, out=out.data)
    filled = np.flatnonzero(np.diff(out.indptr))
    if not len(filled):
        return out.astype(np.float32), 0
    starts, sizes = out.indptr[filled], np.diff(out.indptr)[filled]
    if library is not None:
        units = [TARGET_SUM / np.asarray(library, dtype=np.float64)[filled]]
    else:
        units = [np.minimum.reduceat(out.data, starts) / divisor for divisor in (1, 2, 3)]
    off = np.stack([_distance_from_integers(out.data, starts, np.repeat(unit, sizes)) for unit in units])
    close = off <= _CLOSE
    best = np.where(close.any(0), close.argmax(0), off.argmin(0))
    failed = int((~close.any(0)).sum())
    out.data = np.rint(out.data / np.repeat(np.stack(units)[best, np.arange(len(filled))], sizes))
    return out.astype(np.float32), failed


def _distance_from_integers(values: np.ndarray, starts: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """How far the worst value of each cell is from a multiple of its unit."""
    scaled = values / unit
    return np.maximum.reduceat(np.abs(scaled - np.rint(scaled)), starts)
