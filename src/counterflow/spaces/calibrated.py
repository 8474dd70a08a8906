"""Count transport whose gene means are set: one factor per gene on the rates after, so that the mean log expression is the wanted one.

A low-dimensional state does not know every gene; a rule measured gene by gene does. The factor is found on some control cells and is
then the same for all, so that what the state says about differences between cells stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from counterflow.spaces.base import TARGET_SUM
from counterflow.spaces.counts import transport

N_TRIES = 12
WIDEST = 12.0  # of the log factor


def gene_factors(
    counts: NDArray, library: NDArray, before: NDArray, after: NDArray, wanted: NDArray, dispersion: NDArray, cells: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """What to multiply `after` with (G), so that the mean log1p of transported counts per 10,000 is `wanted`.

    Parameters
    ----------
    counts
        Integers (n x G) of control cells, with library sizes `library` (n) and seeds `cells` (n).
    before, after
        Decoded expected counts (n x G) of the same cells, under control and under the condition.
    wanted
        Mean log1p of counts per 10,000 (G) after the perturbation; at least 0.

    Notes
    -----
    With the noise of each cell held fixed the mean never falls when a rate rises: the factor of every gene is bracketed, the bracket
    halved, and the best factor met is returned. (Newton steps with the slope of Poisson counts do not settle where a state knows the
    counts of its cell.)
    """
    low, high = np.full(counts.shape[1], -np.inf), np.full(counts.shape[1], np.inf)
    tried, best, missed = np.zeros(counts.shape[1]), np.zeros(counts.shape[1]), np.full(counts.shape[1], np.inf)
    scale = TARGET_SUM / np.maximum(library, 1.0)[:, None]
    width = 0.5
    for _ in range(N_TRIES):
        moved = transport(counts, before, after * np.exp(tried), dispersion, 0, cells)
        error = np.log1p(scale * moved).mean(0) - wanted
        best, missed = np.where(np.abs(error) < missed, tried, best), np.minimum(missed, np.abs(error))
        low, high = np.where(error < 0, tried, low), np.where(error < 0, high, tried)
        outside = np.where(np.isinf(high), low + width, high - width)
        tried = np.clip(np.where(np.isinf(high) | np.isinf(low), outside, 0.5 * (low + high)), -WIDEST, WIDEST)
        width *= 2
    return np.exp(best).astype(np.float32)
