"""What the values of a matrix look like, a block of rows at a time, and why they are not what they were declared to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_LARGEST_LOG1P = 30.0  # exp(30) counts per cell do not exist: a larger value is not a logarithm
_LARGEST_EXACT = 2**24  # integers above this are not exact in float32

Place = tuple[int, int]  # cell, gene


@dataclass
class Values:
    """Of a matrix: how many values are what, and the first of those that are odd."""

    n: int = 0  # finite ones
    n_nonzero: int = 0
    n_fractional: int = 0
    largest: float = 0.0
    n_missing: int = 0  # NaN or infinite
    n_negative: int = 0
    first_missing: Place | None = None
    first_negative: Place | None = None

    def add(self, matrix: sparse.csr_matrix | np.ndarray, first_row: int = 0) -> None:
        """Look at a block of rows, sparse by rows or dense; of a sparse one the stored values only."""
        values = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)  # type: ignore[union-attr]
        finite, negative = np.isfinite(values), values < 0
        if not finite.all():
            self.n_missing += int((~finite).sum())
            self.first_missing = self.first_missing or _first(matrix, ~finite, first_row)
            negative &= finite  # minus infinity was counted already
        if negative.any():
            self.n_negative += int(negative.sum())
            self.first_negative = self.first_negative or _first(matrix, negative, first_row)
        if not finite.all():
            values = values[finite]
        self.n += values.size
        if values.size:
            self.largest = max(self.largest, float(values.max()))
            self.n_nonzero += int(np.count_nonzero(values))
            self.n_fractional += int((values != np.rint(values)).sum())


def _first(matrix: sparse.csr_matrix | np.ndarray, odd: np.ndarray, first_row: int) -> Place:
    if not sparse.issparse(matrix):
        row, column = (int(i) for i in np.argwhere(odd)[0])
        return first_row + row, column
    at = int(np.flatnonzero(odd)[0])
    rows, genes = np.asarray(matrix.indptr), np.asarray(matrix.indices)  # type: ignore[union-attr]
    return first_row + int(np.searchsorted(rows, at, side="right")) - 1, int(genes[at])


def value_problems(
    values: Values, matrix_state: str, where: str, named: Callable[[Place], str], other_counts: Callable[[], list[str]]
) -> list[str]:
    """Every reason why the values are not what `matrix_state` says.

    Parameters
    ----------
    where
        What messages call the matrix.
    named
        Cell and gene in words.
    other_counts
        Names of other matrices of the same file that hold counts; asked only where this one does not.
    """
    found = []
    if values.first_missing is not None:
        first = named(values.first_missing)
        found.append(f"{where} has {values.n_missing} values that are NaN or infinite, first in {first}: remove or mend them")
    if values.first_negative is not None:
        what = "counts" if matrix_state == "counts" else "log1p values"
        found.append(
            f"{where} has {values.n_negative} negative values, first in {named(values.first_negative)}: "
            f"{what} are >= 0 (scaled or centred data cannot be used; give the layer with the counts)"
        )
        return found  # what is centred is not asked whether it was counted
    return [*found, *_state_problems(values, matrix_state, where, other_counts)]


def _state_problems(values: Values, matrix_state: str, where: str, other_counts: Callable[[], list[str]]) -> list[str]:
    if values.largest == 0:
        return [f"{where} holds only zeros"]
    if matrix_state == "counts":
        if values.n_fractional:
            share, counted = values.n_fractional / max(values.n_nonzero, 1), other_counts()
            advice = f"counts seem to be in {', '.join(counted)}" if counted else "if it is log1p-normalised, declare matrix_state='log1p'"
            odd = f"{share:.0%} of its non-zero values are not integers (largest {values.largest:.4g})"
            return [f"{where} is declared as counts, but {odd}: {advice}"]
        if values.largest > _LARGEST_EXACT:
            return [f"{where} has a count of {values.largest:.0f}, more than float32 holds exactly (2^24): this cannot be a UMI count"]
    elif matrix_state == "log1p":
        if values.largest > _LARGEST_LOG1P:
            odd = f"its largest value is {values.largest:.4g}: these look like raw counts"
            return [f"{where} is declared as log1p, but {odd}, declare matrix_state='counts'"]
        if not values.n_fractional:
            return [
                f"{where} is declared as log1p, but every value is an integer (largest {values.largest:.0f}): declare matrix_state='counts'"
            ]
    return []
