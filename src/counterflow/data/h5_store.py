"""Counts read in place from an h5ad file: rows by rows, never the whole matrix."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.matrix import canonical, place, recovered
from counterflow.errors import DataError

VALUES_AT_ONCE = 1_000_000  # of a pass over the file: bounds the memory
_NEAR = 64  # rows between two wanted ones that are read along: cheaper than to begin anew


class H5Store:
    """X or a layer of an h5ad file, sparse by rows or dense, as counts.

    Parameters
    ----------
    path
        The file.
    layer
        ``None``: X.
    matrix_state
        ``counts`` or ``log1p``; of the latter, counts are recovered.
    library
        Counts per cell over all genes, where they are known (n).
    """

    def __init__(self, path: str | os.PathLike[str], layer: str | None, matrix_state: str, library: NDArray | None = None) -> None:
        import h5py

        self.path, self.layer, self.matrix_state, self.library = os.fspath(path), layer, matrix_state, library
        self._file = h5py.File(self.path, "r")
        name = "X" if layer is None else f"layers/{layer}"
        if name not in self._file:
            raise DataError(f"{self.path!r} has no {name}")
        self._matrix: Any = self._file[name]
        self.is_dense = isinstance(self._matrix, h5py.Dataset)
        if self.is_dense:
            self.shape: tuple[int, int] = (int(self._matrix.shape[0]), int(self._matrix.shape[1]))
            self.n_values = self.shape[0] * self.shape[1]
            self.dtype = self._matrix.dtype
            return
        kind = self._matrix.attrs.get("encoding-type", self._matrix.attrs.get("h5sparse_format", ""))
        if kind not in ("csr_matrix", "csr"):
            raise DataError(
                f"{place(layer)} of {self.path!r} is stored by genes (CSC), so that single cells cannot be read: make its cache with "
                "counterflow convert, which turns it, or write the file again with adata.X = adata.X.tocsr()"
            )
        n_cells, n_genes = self._matrix.attrs.get("shape", self._matrix.attrs.get("h5sparse_shape"))
        self.shape = (int(n_cells), int(n_genes))
        self.indptr = self._matrix["indptr"][:].astype(np.int64)
        self.dtype, self.n_values = self._matrix["data"].dtype, len(self._matrix["indices"])
        steps = np.diff(self.indptr)
        if len(steps) != self.shape[0] or self.indptr[0] != 0 or self.indptr[-1] > self.n_values or np.any(steps < 0):
            raise self._damaged("its row pointers are corrupt")
        if len(self._matrix["data"]) != self.n_values:
            raise self._damaged("it has different numbers of values and indices")

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{place(self.layer)} is a damaged sparse matrix: {why}; write the file again from its source")

    def order(self, rows: NDArray) -> NDArray:
        """The file has its own order."""
        return rows

    def read(self, rows: NDArray) -> sparse.csr_matrix:
        """Counts of these rows, in the order given."""
        wanted, back = np.unique(rows, return_inverse=True)
        if not len(wanted):
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        cuts = np.flatnonzero(np.diff(wanted) > _NEAR) + 1
        runs = [self.raw(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in np.split(wanted, cuts)]
        raw = runs[0] if len(runs) == 1 else sparse.vstack(runs, format="csr")
        counts = self.counts(raw, wanted)[0]
        return counts if np.array_equal(back, np.arange(len(wanted))) else counts[back]

    def raw(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows as they are in the file; an index that is none is an error."""
        if self.is_dense:
            return sparse.csr_matrix(self._matrix[start:stop])
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        data, indices = self._matrix["data"][first:last], self._matrix["indices"][first:last]
        if len(indices) and (indices.min() < 0 or indices.max() >= self.shape[1]):
            worst = indices.min() if indices.min() < 0 else indices.max()
            raise self._damaged(f"it holds an index of {int(worst)}, but there are {self.shape[1]} genes")
        return sparse.csr_matrix((data, indices, self.indptr[start : stop + 1] - first), shape=(stop - start, self.shape[1]))

    def counts(self, raw: sparse.csr_matrix, rows: NDArray) -> tuple[sparse.csr_matrix, int]:
        """Counts behind raw rows, and in how many of them they could not be told."""
        csr = canonical(raw)
        if self.matrix_state != "log1p":
            return csr, 0
        return recovered(csr, None if self.library is None else self.library[rows])

    def blocks(self) -> list[tuple[int, int]]:
        """First and last row (exclusive) of a pass over the file."""
        if self.is_dense:
            step = max(1, VALUES_AT_ONCE // max(self.shape[1], 1))
            return [(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]
        found, start = [], 0
        while start < self.shape[0]:
            stop = int(np.searchsorted(self.indptr, self.indptr[start] + VALUES_AT_ONCE, side="right")) - 1
            stop = min(max(stop, start + 1), start + 16384, self.shape[0])
            found.append((start, stop))
            start = stop
        return found
