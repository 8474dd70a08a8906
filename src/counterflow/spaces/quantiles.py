"""Quantiles of count distributions, fast where counts are few: in a cell nearly all are 0, 1 or 2.

The smallest k with u <= P(X <= k) is found by counting up; what lies far out is left to SciPy, whose quantiles cost 10 microseconds each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FAR = 40  # counted up to; further out SciPy is asked
LARGEST_N = 500  # of binomials that are counted up: (1 - p)^n of larger ones can underflow


def binomial_quantile(uniform: NDArray, n: NDArray, p: NDArray) -> NDArray[np.int32]:
    """Quantile of Binomial(n, p) at the uniform numbers [cells, genes]; n itself where p is 1."""
    from scipy.stats import binom

    result = n.astype(np.int32)
    some = (n > 0) & (p < 1)
    u, tries, share = uniform[some], n[some].astype(np.float64), p[some]
    odds = share / (1 - share)
    first = np.where(tries <= LARGEST_N, (1 - share) ** tries, 0.0)
    found = _count_up(u, first, lambda k, at: (tries[at] - k) / (k + 1) * odds[at])
    far = found < 0
    found[far] = binom.ppf(u[far], tries[far], share[far])
    result[some] = found
    return result


def nb_quantile(uniform: NDArray, mean: NDArray, dispersion: NDArray) -> NDArray[np.int32]:
    """Quantile of NB(mean, theta), variance = mean + mean² / theta, at uniform numbers [cells, genes]; Poisson if theta is infinite."""
    from scipy.stats import nbinom, poisson

    theta = np.broadcast_to(np.asarray(dispersion, dtype=np.float64), mean.shape)
    is_poisson = np.isinf(theta)
    finite = np.where(is_poisson, 1.0, theta)
    none = np.exp(np.where(is_poisson, -mean, -finite * np.log1p(mean / finite)))  # probability of no count: nearly all stop here
    result = np.zeros(mean.shape, dtype=np.int32)
    some = uniform > none
    u, mu, size, limit = uniform[some], mean[some], finite[some], is_poisson[some]
    slope = np.where(limit, mu, mu / (size + mu))
    found = _count_up(u, none[some], lambda k, at: slope[at] * np.where(limit[at], 1.0, size[at] + k) / (k + 1))
    far = found < 0
    found[far & limit] = poisson.ppf(u[far & limit], mu[far & limit])
    far &= ~limit
    found[far] = nbinom.ppf(u[far], size[far], size[far] / (size[far] + mu[far]))
    result[some] = found
    return result


def _count_up(uniform: NDArray, first: NDArray, ratio: Callable[[int, NDArray], NDArray]) -> NDArray[np.int64]:
    """Smallest k with `uniform` <= P(X <= k), from P(0) = `first` and P(k + 1) / P(k) = ``ratio(k, positions)``; -1: too far."""
    found = np.zeros(len(uniform), dtype=np.int64)
    at = np.flatnonzero(uniform > first)
    mass = first[at]
    below = mass.copy()
    for k in range(FAR):
        if not len(at):
            return found
        mass = mass * ratio(k, at)
        below += mass
        stop = uniform[at] <= below
        found[at[stop]] = k + 1
        at, mass, below = at[~stop], mass[~stop], below[~stop]
    found[at] = -1
    return found
