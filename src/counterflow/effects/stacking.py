"""How much of another estimator helps: learnt on conditions that were left out of both.

A prediction is ``base + weight * (other - base)``. The weight is least squares over left-out conditions, in [0, 1], and shrunk to 0 by its
own uncertainty between them (positive-part James-Stein): where they disagree, or are too few, the base stays (a stacked regression:
Breiman, Mach. Learn. 1996).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST = 3  # left-out conditions


def learnt_weight(missed: Sequence[NDArray], beyond: Sequence[NDArray]) -> float:
    """Weight of the other estimator.

    Parameters
    ----------
    missed
        What the base missed, truth minus prediction, of each left-out condition.
    beyond
        The other prediction minus that of the base, of the same.
    """
    along = np.array([float((m * b).sum()) for m, b in zip(missed, beyond, strict=True)])
    square = np.array([float((b**2).sum()) for b in beyond])
    n, total = len(along), square.sum()
    if n < FEWEST or total <= 0 or along.sum() <= 0:
        return 0.0
    weight = along.sum() / total
    error = np.sqrt(((along - weight * square) ** 2).sum() * n / (n - 1)) / total
    return float(min(weight * max(0.0, 1.0 - (error / weight) ** 2), 1.0))
