"""The feed: where the counts of a screen's cells are, and how rows come out of there.

Counts are a CSR matrix in memory, or `StoredCounts`: rows of a file on disk (an h5ad, or the cache made of it), read when they are asked
for. Both are a `CellSource`: ``counts[rows]`` is a CSR matrix of these rows, the same bits whichever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

BATCH = 8192  # rows of a pass over all cells: bounds the memory
ENOUGH = 50_000  # cells that what describes all of them (variable genes, components) is learnt from, chosen at random
_ENOUGH_VALUES = 400_000_000  # cells x genes of them


class CellSource(Protocol):
    """Counts of n cells x G genes as float32, canonical, row by row."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        ...

    def __getitem__(self, rows: Any) -> sparse.csr_matrix:
        """Some rows (an array of positions or a slice), in the order given."""
        ...


class Store(Protocol):
    """A file with the counts of every cell; rows have the numbers of the file that the user gave."""

    shape: tuple[int, int]
    n_values: int

    def read(self, rows: NDArray) -> sparse.csr_matrix:
        """These rows, in the order given."""
        ...

    def order(self, rows: NDArray) -> NDArray:
        """Where in storage each of these rows lies: nearby numbers are read together."""
        ...


@dataclass(frozen=True)
class StoredCounts:
    """A choice of the rows and genes of a file."""

    store: Store
    chosen: NDArray | None = None  # rows of the file; None: all
    columns: NDArray | None = None  # genes of the file, -1 where it has none; None: all

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        n_cells = self.store.shape[0] if self.chosen is None else len(self.chosen)
        return n_cells, self.store.shape[1] if self.columns is None else len(self.columns)

    def __getitem__(self, rows: Any) -> sparse.csr_matrix:
        """These rows, read from the file."""
        counts = self.store.read(self._in_file(rows))
        return counts if self.columns is None else take_columns(counts, self.columns)

    def rows(self, chosen: NDArray) -> StoredCounts:
        """Fewer cells; nothing is read."""
        return replace(self, chosen=self._in_file(chosen).astype(np.int32 if self.store.shape[0] < 2**31 else np.int64))

    def genes(self, columns: NDArray) -> StoredCounts:
        """Other genes; nothing is read."""
        return replace(self, columns=columns if self.columns is None else np.where(columns < 0, -1, self.columns[columns]))

    def batches(self) -> Iterator[NDArray]:
        """Every row once, as they lie in the file."""
        at = self.store.order(np.arange(self.store.shape[0]) if self.chosen is None else self.chosen)
        in_order = np.arange(len(at)) if np.all(at[1:] > at[:-1]) else np.argsort(at, kind="stable")
        for start in range(0, len(in_order), BATCH):
            yield in_order[start : start + BATCH]

    def _in_file(self, rows: Any) -> NDArray:
        if isinstance(rows, slice):
            rows = np.arange(self.shape[0])[rows]
        return np.asarray(rows) if self.chosen is None else self.chosen[rows]


def in_memory(source: CellSource) -> bool:
    """Whether reading rows costs next to nothing."""
    return not isinstance(source, StoredCounts)


def whole(source: CellSource) -> sparse.csr_matrix:
    """All rows, in memory: for as many cells as are known to be few."""
    return source[:] if isinstance(source, StoredCounts) else source


def batches(source: CellSource) -> Iterator[NDArray]:
    """Every row once, a bounded number at a time, in the order in which they are read best."""
    if isinstance(source, StoredCounts):
        yield from source.batches()
        return
    for start in range(0, source.shape[0], BATCH):
        yield np.arange(start, min(start + BATCH, source.shape[0]))


def total(source: CellSource) -> float:
    """The sum of all counts."""
    if not isinstance(source, StoredCounts):
        return float(source.sum())  # type: ignore[attr-defined]
    return float(sum(source[rows].sum(dtype=np.float64) for rows in source.batches()))


def take_rows(source: CellSource, rows: NDArray) -> CellSource:
    """The cells at these positions; of a file nothing is read."""
    return source.rows(rows) if isinstance(source, StoredCounts) else source[rows]


def take_genes(source: CellSource, columns: NDArray) -> CellSource:
    """The genes at these positions (-1: zeros); of a file nothing is read."""
    return source.genes(columns) if isinstance(source, StoredCounts) else take_columns(source, columns)  # type: ignore[arg-type]


def take_columns(counts: sparse.csr_matrix, positions: NDArray) -> sparse.csr_matrix:
    """The genes at `positions` (-1: zeros), each row sorted: sums over a row then give the same bits whatever the order in the file."""
    there = positions >= 0
    chosen = counts[:, positions[there]]
    if not there.all():
        columns = np.flatnonzero(there)[chosen.indices]
        chosen = sparse.csr_matrix((chosen.data, columns, chosen.indptr), shape=(counts.shape[0], len(positions)))
    chosen.sort_indices()
    return chosen


def enough(n_cells: int, n_genes: int, seed: int) -> NDArray:
    """Positions of the cells that are enough to learn what all have in common: all of them, or a random choice."""
    most = min(ENOUGH, _ENOUGH_VALUES // max(n_genes, 1))
    if n_cells <= most:
        return np.arange(n_cells)
    return np.sort(np.random.default_rng([seed, 6]).choice(n_cells, most, replace=False))
