"""Metrics over all conditions of a screen: can the prediction be told from those of other conditions?

Each returns one value per condition, and nan for all when there are fewer than 5. They are blind to the effect's scale or,
with l1 and l2, reward blown-up effects: use the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FEWEST_CONDITIONS = 5


LeaveOut: TypeAlias = "Sequence[int] | Sequence[Sequence[int]]"


def pds_cosine(predicted_effects: NDArray, real_effects: NDArray, *, leave_out: LeaveOut | None = None) -> NDArray:
    """Perturbation discrimination score by cosine distance; see `pds_l2`."""
    return _discrimination(predicted_effects, real_effects, "cosine", leave_out)


def pds_l1(predicted_effects: NDArray, real_effects: NDArray, *, leave_out: LeaveOut | None = None) -> NDArray:
    """Perturbation discrimination score by Manhattan distance; see `pds_l2`."""
    return _discrimination(predicted_effects, real_effects, "cityblock", leave_out)


def pds_l2(predicted_effects: NDArray, real_effects: NDArray, *, leave_out: LeaveOut | None = None) -> NDArray:
    """Perturbation discrimination score by Euclidean distance (Virtual Cell Challenge).

    1 - k / (P - 1), k = how many other real effects are closer to the predicted one than its own, half for ties. 1 is best;
    a generic response has mean .5 exactly.

    Parameters
    ----------
    predicted_effects, real_effects
        [P x G], one row per condition in the same order.
    leave_out
        For each condition the column of its perturbed gene, or -1; or all its columns, for combinations. Whenever two conditions
        are compared the genes of both are dropped: without the other's gene too, "I am not that knockout" would be as good as
        knowing one's own.
    """
    return _discrimination(predicted_effects, real_effects, "euclidean", leave_out)


def centroid_acc(predicted_means: NDArray, real_means: NDArray) -> NDArray:
    """Share of the other real centroids that are farther from the predicted one than its own, half for ties."""
    return _discrimination(predicted_means, real_means, "euclidean", None)


def rank_perturbench(predicted_means: NDArray, real_means: NDArray) -> NDArray:
    """Share of the *other predictions* at least as close to the real mean as its own: 0 is best, ties count as worse (PerturBench).

    Random predictions score .5 on average; one generic response for all conditions ties everywhere and scores 1.
    """
    n = len(real_means)
    if n < FEWEST_CONDITIONS:
        return np.full(n, np.nan)
    distance = _distances(real_means, predicted_means, "euclidean")
    return ((distance <= np.diag(distance)[:, None]).sum(1) - 1) / (n - 1)


def _discrimination(predicted: NDArray, real: NDArray, metric: str, leave_out: LeaveOut | None) -> NDArray:
    n = len(real)
    if n < FEWEST_CONDITIONS:
        return np.full(n, np.nan)
    if leave_out is None:
        to_others = _distances(predicted, real, metric)
        to_own = np.repeat(np.diag(to_others)[:, None], n, axis=1)
    else:
        to_others, to_own = _distances_leaving_out(predicted, real, metric, _mask(leave_out, predicted.shape))
    closer = (to_others < to_own).sum(1) + ((to_others == to_own).sum(1) - 1) / 2  # its own effect always ties with itself
    return 1 - closer / (n - 1)


def _mask(leave_out: LeaveOut, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[P x G], True for the perturbed genes of each condition."""
    mask = np.zeros(shape, dtype=bool)
    for row, columns in zip(mask, leave_out, strict=True):
        gone = np.atleast_1d(np.asarray(columns, dtype=int))
        row[gone[gone >= 0]] = True
    return mask


def _distances_leaving_out(predicted: NDArray, real: NDArray, metric: str, own: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """[p, q] distance of prediction p to real q, and to real p, both without the genes of p and q."""
    n = len(real)
    to_others, to_own = np.empty((n, n)), np.empty((n, n))
    for p in range(n):
        kept = ~(own | own[p])  # a gene that is 0 in both vectors adds to none of the distances
        mine = predicted[p] * kept
        to_others[p], to_own[p] = _row_distances(mine, real * kept, metric), _row_distances(mine, real[p] * kept, metric)
    return to_others, to_own


def _row_distances(a: NDArray, b: NDArray, metric: str) -> NDArray:
    if metric == "cityblock":
        return np.abs(a - b).sum(1)
    if metric == "euclidean":
        return np.sqrt(np.square(a - b).sum(1))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - np.divide((a * b).sum(1), norms, out=np.zeros_like(norms), where=norms > 0)


def _distances(a: NDArray, b: NDArray, metric: str) -> NDArray:
    """Distances of rows; a zero vector has cosine distance 1 to everything."""
    from scipy.spatial.distance import cdist

    distance = cdist(a, b, metric)
    if metric == "cosine":
        distance[~np.any(a, axis=1)] = 1
        distance[:, ~np.any(b, axis=1)] = 1
    return distance
