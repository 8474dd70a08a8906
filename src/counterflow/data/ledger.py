"""The ledger of a fit: which cells each of its stages learned from, so that an audit can ask whether one of them was held out.

A cell is known by two numbers of 64 bits, one made of its name and one of its counts: a copy under another name is found, and so is
the same cell counted anew. The functions that learn something write into the ledger what they were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.data.source import CellSource, batches

STAGES = {
    "genes": "gene selection",
    "features": "perturbation features",
    "gene features": "features of genes",
    "vae": "the handed-in VAE",
    "backbone": "the handed-in network",
    "space": "the space (PCA, VAE, scaler)",
    "order": "the order of the state features",
    "courses": "mean effects over time or dose",
    "rule": "the additive rule",
    "weights": "training of the flow",
    "recipe": "how far the flow is trusted beyond the rule",
    "validation": "the validation loss (early stopping)",
    "guidance": "the choice of the guidance scale",
    "reference": "the kept reference controls and library sizes",
}
"""What a stage is called in words."""


@dataclass(frozen=True)
class CellKeys:
    """Cells by what they are called and by what was counted in them."""

    name: NDArray[np.uint64]  # n
    content: NDArray[np.uint64] | None = None  # n; None where only names are known

    @classmethod
    def of(cls, names: Iterable[str], counts: CellSource | None = None, genes: Sequence[str] = ()) -> CellKeys:
        """Keys of cells with these names, and with these counts (n x G, canonical) of these genes."""
        return cls(hashes(names), None if counts is None else content_hashes(counts, genes))

    def rows(self, index: NDArray) -> CellKeys:
        """Of some of these cells."""
        return CellKeys(self.name[index], None if self.content is None else self.content[index])

    def with_more(self, other: CellKeys) -> CellKeys:
        """All cells of both; counts are known where both know them."""
        if other is self:
            return self
        if np.isin(other.name, self.name).all() and (self.content is None or _within(other.content, self.content)):
            return self
        both_known = self.content is not None and other.content is not None
        content = np.concatenate([self.content, other.content]) if both_known else None  # type: ignore[list-item]
        return CellKeys(np.concatenate([self.name, other.name]), content)


def _within(some: NDArray | None, many: NDArray) -> bool:
    return some is not None and bool(np.isin(some, many).all())


def hashes(names: Iterable[str]) -> NDArray[np.uint64]:
    """A stable 64-bit number for each name."""
    numbers = (int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), "little") for name in names)
    return np.fromiter(numbers, dtype=np.uint64)


def content_hashes(counts: CellSource, genes: Sequence[str]) -> NDArray[np.uint64]:
    """A stable 64-bit number for the counts of each cell (n x G), whatever the order of the genes; zeros do not count."""
    of_gene = hashes(genes)
    result = np.zeros(counts.shape[0], dtype=np.uint64)
    for rows in batches(counts):
        block = counts[rows]
        values = _mixed(of_gene[block.indices] + _mixed(block.data.astype(np.uint64)))
        filled = np.flatnonzero(np.diff(block.indptr))
        if len(filled):
            result[rows[filled]] = np.add.reduceat(values, block.indptr[filled])
    return result


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Ledger:
    """Stage -> the cells it learned from, and a remark where that is not wholly known.

    Parameters
    ----------
    seen
        Cells of the stages that know theirs.
    remarks
        What is not known of a stage, in words.
    """

    seen: dict[str, CellKeys] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def unknown(cls, *stages: str) -> Ledger:
        """Of a model that came without one."""
        return cls(remarks=dict.fromkeys(stages, "an older version fitted this and kept no ledger"))

    def record(self, stage: str, cells: CellKeys) -> None:
        """Write down that `stage` (one of STAGES, or a name of your own) learned from `cells`, besides those it had already seen."""
        self.seen[stage] = self.seen[stage].with_more(cells) if stage in self.seen else cells

    def remark(self, stage: str, text: str) -> None:
        """Write down what is not known of `stage`."""
        self.remarks[stage] = text

    def forget(self, *stages: str) -> None:
        """Before these stages are fitted anew."""
        for stage in stages:
            self.seen.pop(stage, None)
            self.remarks.pop(stage, None)

    def stages(self) -> list[str]:
        """All stages, in the order of STAGES."""
        order = list(STAGES)
        return sorted({*self.seen, *self.remarks}, key=lambda stage: (order.index(stage) if stage in order else len(order), stage))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray]]:
        """A dictionary for JSON, and arrays; a set of cells that several stages share is there once."""
        sets: dict[bytes, int] = {}
        arrays: dict[str, NDArray] = {}
        stages: dict[str, Any] = {}
        for stage in self.stages():
            cells, number = self.seen.get(stage), None
            if cells is not None:
                numbers = [cells.name] if cells.content is None else [cells.name, cells.content]
                number = sets.setdefault(blake2b(b"|".join(part.tobytes() for part in numbers)).digest(), len(sets))
                arrays[f"ledger.{number}"] = np.stack(numbers)
            stages[stage] = {"cells": None if cells is None else len(cells.name), "set": number, "remark": self.remarks.get(stage, "")}
        return stages, arrays

    @classmethod
    def from_parts(cls, stages: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Ledger:
        """Inverse of `to_parts`."""
        ledger = cls()
        for stage, entry in stages.items():
            if entry["set"] is not None:
                ledger.seen[stage] = CellKeys(*arrays[f"ledger.{entry['set']}"])
            if entry["remark"]:
                ledger.remarks[stage] = str(entry["remark"])
        return ledger
