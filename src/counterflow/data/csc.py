"""From a matrix that is stored by genes (CSC) to the same matrix by cells (CSR), both on disk, in bounded memory.

Two passes over the file: one counts the values of every cell, the other puts every value into the bucket of its cell (some thousands of
neighbouring cells, all of whose values fit into memory). Then each bucket is sorted. Values of a gene come in the order of the file, so
within a cell genes come out sorted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.data.matrix import place
from counterflow.data.progress import tracked
from counterflow.errors import DataError

AT_ONCE = 2_000_000  # values read together, and values of a bucket: bounds the memory


def is_by_genes(path: str | os.PathLike[str], layer: str | None) -> bool:
    """Whether a matrix of a file is CSC."""
    import h5py

    with h5py.File(path, "r") as handle:
        matrix = handle.get(_name(layer))
        return isinstance(matrix, h5py.Group) and matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format", "")) in (
            "csc_matrix",
            "csc",
        )


def by_cells(path: str | os.PathLike[str], layer: str | None, out: Path) -> Path:
    """Write a CSC matrix of a file as X of the file `out`, by cells; one that is there is kept.

    Raises
    ------
    DataError
        If the matrix is damaged, or the disk too full.
    """
    if out.exists():
        return out
    import h5py

    partial, scratch = out.with_name(out.name + ".new"), out.with_name(out.name + ".buckets")
    try:
        with h5py.File(path, "r") as handle, h5py.File(partial, "w") as new, scratch.open("w+b") as buckets:
            matrix = _Columns(handle[_name(layer)], place(layer))
            needed, free = len(matrix) * (matrix.entry.itemsize + matrix.dtype.itemsize + 4), shutil.disk_usage(out.parent).free
            if free < needed:
                raise DataError(f"to turn {place(layer)} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {out.parent}")
            _turn(matrix, new, buckets.fileno())
        with partial.open("rb") as done:
            os.fsync(done.fileno())
        os.replace(partial, out)
    finally:
        for left in (scratch, partial):
            left.unlink(missing_ok=True)
    return out


def _name(layer: str | None) -> str:
    return "X" if layer is None else f"layers/{layer}"


@dataclass
class _Columns:
    """A checked CSC matrix on disk."""

    group: Any
    where: str

    def __post_init__(self) -> None:
        n_cells, n_genes = self.group.attrs.get("shape", self.group.attrs.get("h5sparse_shape"))
        self.shape = int(n_cells), int(n_genes)
        self.begin = self.group["indptr"][:].astype(np.int64)
        self.dtype: np.dtype = self.group["data"].dtype
        if len(self.begin) != self.shape[1] + 1 or self.begin[0] != 0 or self.begin[-1] > len(self) or np.any(np.diff(self.begin) < 0):
            raise self._damaged("its column pointers are corrupt")
        if len(self.group["data"]) != len(self):
            raise self._damaged("it has different numbers of values and indices")
        if self.dtype.kind not in "biuf":
            raise DataError(f"{self.where} has dtype {self.dtype}, not numbers")
        self.entry = np.dtype([("cell", "<u4"), ("gene", "<i4"), ("value", self.dtype)])

    def __len__(self) -> int:
        return len(self.group["indices"])

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.where} is a damaged sparse matrix: {why}; write the file again from its source")

    def pieces(self, text: str) -> Iterator[tuple[int, NDArray]]:
        """Where each piece of the values begins, and the cells of these."""
        n = int(self.begin[-1])
        starts = list(range(0, n, AT_ONCE))
        for start in tracked(starts, text, [min(AT_ONCE, n - start) for start in starts]):
            cells = self.group["indices"][start : min(start + AT_ONCE, n)]
            if len(cells) and (cells.min() < 0 or cells.max() >= self.shape[0]):
                worst = cells.min() if cells.min() < 0 else cells.max()
                raise self._damaged(f"it holds an index of {int(worst)}, but there are {self.shape[0]} cells")
            yield start, cells.astype(np.int64)

    def entries(self, start: int, cells: NDArray) -> NDArray:
        """Cell, gene and value of a piece."""
        stop = start + len(cells)
        found = np.empty(len(cells), dtype=self.entry)
        first, last = (int(np.searchsorted(self.begin, at, side="right")) - 1 for at in (start, stop - 1))
        edges = np.clip(self.begin[first : last + 2], start, stop)
        found["cell"], found["value"] = cells, self.group["data"][start:stop]
        found["gene"] = np.repeat(np.arange(first, last + 1), np.diff(edges))
        return found


def _turn(matrix: _Columns, new: Any, buckets: int) -> None:
    lengths = np.zeros(matrix.shape[0], dtype=np.int64)
    for _, cells in matrix.pieces("counting values of cells"):
        lengths += np.bincount(cells, minlength=len(lengths))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    first = _bucket_starts(indptr)
    at = indptr[first].copy()  # where the next value of each bucket goes
    for start, cells in matrix.pieces("sorting values into cells"):
        bucket = np.searchsorted(first, cells, side="right") - 1
        order = np.argsort(bucket, kind="stable")
        ordered = matrix.entries(start, cells)[order]
        which, begins = np.unique(bucket[order], return_index=True)
        for b, piece in zip(which.tolist(), np.split(ordered, begins[1:]), strict=True):
            _write(buckets, piece, int(at[b]) * matrix.entry.itemsize)
            at[b] += len(piece)
    group = new.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": matrix.shape})
    group.create_dataset("indptr", data=indptr)
    data = group.create_dataset("data", (indptr[-1],), matrix.dtype)
    genes = group.create_dataset("indices", (indptr[-1],), "<i4")
    for begin, end in zip(indptr[first].tolist(), [*indptr[first[1:]].tolist(), int(indptr[-1])], strict=True):
        entries = np.frombuffer(_read(buckets, (end - begin) * matrix.entry.itemsize, begin * matrix.entry.itemsize), dtype=matrix.entry)
        entries = entries[np.argsort(entries["cell"], kind="stable")]
        data[begin:end], genes[begin:end] = entries["value"], entries["gene"]


def _bucket_starts(indptr: NDArray) -> NDArray[np.int64]:
    """The first cell of every bucket; a cell is never split."""
    found, n = [0], len(indptr) - 1
    while (stop := max(int(np.searchsorted(indptr, indptr[found[-1]] + AT_ONCE, side="right")) - 1, found[-1] + 1)) < n:
        found.append(stop)
    return np.array(found, dtype=np.int64)


def _write(file: int, values: NDArray, offset: int) -> None:
    view = memoryview(np.ascontiguousarray(values).view(np.uint8).data)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _read(file: int, size: int, offset: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while len(view):
        if (read := os.preadv(file, [view], offset)) <= 0:
            raise OSError("a file ends too early")
        view, offset = view[read:], offset + read
    return found
