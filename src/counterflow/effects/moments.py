"""Means and variances of groups of cells, a bounded number of cells at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

MOST = 16384  # cells looked at together
Pair = tuple[int, int]  # condition, context
Moments = tuple[int, NDArray, NDArray]  # number, mean and variance of each feature


def pairs_of(condition: NDArray, context: NDArray) -> list[Pair]:
    """The (condition, context) that there are, sorted."""
    codes = condition.astype(np.int64) * (int(context.max(initial=0)) + 1) + context
    _, first = np.unique(codes, return_index=True)
    return sorted(zip(condition[first].tolist(), context[first].tolist(), strict=True))


def group_moments(
    values: Callable[[NDArray], NDArray | sparse.csr_matrix],
    condition: NDArray,
    context: NDArray,
    blocks: Iterable[NDArray] | None = None,
) -> dict[Pair, Moments]:
    """Moments of every (condition, context).

    Parameters
    ----------
    values
        Rows of the space (n x F) for an array of cell positions.
    blocks
        All positions, some at a time, in the order in which they are read best; default: group after group.
    """
    found: dict[Pair, Moments] = dict.fromkeys(pairs_of(condition, context), (0, np.zeros(0), np.zeros(0)))
    for rows in _by_group(condition, context, found) if blocks is None else blocks:
        some = values(rows)
        pairs = pairs_of(condition[rows], context[rows])
        for pair in pairs:
            here = some if len(pairs) == 1 else some[np.flatnonzero((condition[rows] == pair[0]) & (context[rows] == pair[1]))]
            found[pair] = _together(found[pair], _moments(here))
    return found


def _by_group(condition: NDArray, context: NDArray, pairs: Iterable[Pair]) -> Iterator[NDArray]:
    for code, c in list(pairs):
        rows = np.flatnonzero((condition == code) & (context == c))
        for start in range(0, len(rows), MOST):
            yield rows[start : start + MOST]


def _moments(cells: NDArray | sparse.csr_matrix) -> Moments:
    """Sparse cells stay sparse."""
    if isinstance(cells, sparse.csr_matrix):
        exact = cells.astype(np.float64)
        mean = np.asarray(exact.mean(0)).ravel()
        return cells.shape[0], mean, np.maximum(np.asarray(exact.multiply(exact).mean(0)).ravel() - mean**2, 0)
    exact = np.asarray(cells, dtype=np.float64)
    return len(exact), exact.mean(0), exact.var(0)


def _together(a: Moments, b: Moments) -> Moments:
    """Of the cells of both (Chan, Golub & LeVeque 1979)."""
    if a[0] == 0:
        return b
    n = a[0] + b[0]
    apart, share = b[1] - a[1], b[0] / n
    return n, a[1] + share * apart, (1 - share) * a[2] + share * b[2] + share * (1 - share) * apart**2
