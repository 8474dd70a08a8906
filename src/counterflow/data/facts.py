"""One pass over a matrix on disk: everything that is asked about all of its cells, so that nobody reads it again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.h5_store import H5Store
from counterflow.data.progress import tracked
from counterflow.data.values import Values


@dataclass
class Facts:
    """Of n cells and G genes. Where a value is none (`values` knows), the rest says nothing."""

    totals: NDArray[np.float32]  # n, counts per cell
    measured: NDArray[np.int64]  # G, cells with a count
    lowest: NDArray[np.float32]  # G, of the counts that are not zero
    highest: NDArray[np.float32]  # G
    values: Values = field(default_factory=Values)
    unrecovered: int = 0  # cells whose counts cannot be told from their log1p values

    @classmethod
    def nothing(cls, n_cells: int, n_genes: int) -> Facts:
        """Before the first cell."""
        return cls(
            np.zeros(n_cells, dtype=np.float32),
            np.zeros(n_genes, dtype=np.int64),
            np.full(n_genes, np.inf, dtype=np.float32),
            np.zeros(n_genes, dtype=np.float32),
        )

    def add(self, raw: sparse.csr_matrix, store: H5Store, start: int) -> sparse.csr_matrix | None:
        """Look at rows of the file from `start` on; returns their counts, or nothing once a value is none."""
        self.values.add(raw, start)
        if self.values.n_missing or self.values.n_negative:
            return None
        rows = np.arange(start, start + raw.shape[0])
        counts, failed = store.counts(raw, rows)
        self.unrecovered += failed
        self.totals[rows] = np.asarray(counts.sum(1), dtype=np.float32).ravel()
        self.measured += np.bincount(counts.indices, minlength=len(self.measured))
        np.minimum.at(self.lowest, counts.indices, counts.data)
        np.maximum.at(self.highest, counts.indices, counts.data)
        return counts

    def constant(self) -> NDArray[np.int64]:
        """Genes with the same count in every cell."""
        everywhere = self.measured == len(self.totals)
        return np.flatnonzero((self.measured == 0) | (everywhere & (self.lowest == self.highest)))


def scan(store: H5Store) -> Facts:
    """The facts of a file, a block of rows at a time."""
    facts = Facts.nothing(*store.shape)
    blocks = store.blocks()
    for start, stop in tracked(blocks, "checking the matrix", [stop - start for start, stop in blocks]):
        facts.add(store.raw(start, stop), store, start)
    return facts
