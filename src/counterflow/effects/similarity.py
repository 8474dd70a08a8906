"""The effect in the most similar contexts: what the strongest features follow where contexts fall into families.

Kriging draws contexts that are far from all others to the mean; a feature that answers in one family of cells and not in another is then
half there. The mean of the measured effects with weights that fall steeply with distance does not do that, and is worse for the many
features whose deviations are small. How far it is followed is learnt (`counterflow.effects.stacking`), for strong features and others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARPNESS = 6.0  # weights are exp(-SHARPNESS * distance / median distance)
STRONG = 2.0  # root mean squares of an effect


def similar_mean(distance: NDArray, effects: NDArray) -> NDArray:
    """Mean (F) of effects (U x F) measured in contexts at these distances (U)."""
    weight = np.exp(-SHARPNESS * (distance - distance.min()) / max(float(np.median(distance)), 1e-12))
    return weight @ effects / weight.sum()


def strong(effect: NDArray) -> NDArray[np.intp]:
    """1 for the features (F) whose predicted effect is large, else 0."""
    return (np.abs(effect) > STRONG * np.sqrt(np.mean(effect**2))).astype(np.intp)
