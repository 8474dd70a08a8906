"""Count transport whose gene means are set: one factor per gene on the rates after, so that the mean log expression is the wanted one.

A low-dimensional state does not know every gene; a rule measured gene by gene does. The factor is found on some control cells and is
then the same for all, so that what the state says about differences between cells stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from counterflow.spaces.base import TARGET_SUM
from counterflow.spaces.counts import transport

N_CORRECTIONS = 5
_MOST_AT_ONCE = np.log(4.0)  # a step in log rate


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
    Newton steps in the logarithm of the factor. The slope is that of Poisson counts, d E f(x) / d log(rate) = rate E [f(x + 1) - f(x)].
    """
    log_factor = np.zeros(counts.shape[1])
    scale = TARGET_SUM / np.maximum(library, 1.0)[:, None]
    for _ in range(N_CORRECTIONS):
        rates = after * np.exp(log_factor)
        moved = transport(counts, before, rates, dispersion, 0, cells)
        reached = np.log1p(scale * moved)
        slope = (rates * (np.log1p(scale * (moved + 1)) - reached)).mean(0)
        step = np.divide(wanted - reached.mean(0), slope, out=np.zeros_like(log_factor), where=slope > 1e-9)
        log_factor += np.clip(step, -_MOST_AT_ONCE, _MOST_AT_ONCE)
    return np.exp(np.clip(log_factor, -12, 12)).astype(np.float32)
