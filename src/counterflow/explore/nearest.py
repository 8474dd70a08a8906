"""Which measured perturbations did something similar."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from counterflow.effects.kriging import Level, MeasuredEffects
from counterflow.types import ConditionSpec


class Neighbour(NamedTuple):
    """A measured condition beside a predicted effect."""

    spec: ConditionSpec
    r: float  # correlation of the effects over genes
    size: float  # root mean square of the measured effect
    here: bool  # measured in the same context; else the mean over the others


def nearest_measured(effect: NDArray, measured: MeasuredEffects, level: Level, most: int = 10) -> list[Neighbour]:
    """Measured conditions whose effects correlate most with `effect` (G), best first; those without any effect are left out."""
    found = []
    for s, spec in enumerate(measured.specs):
        units = np.flatnonzero(measured.spec_of == s)
        own = [unit for unit in units if measured.levels[measured.level_of[unit]] == level]
        value = measured.effect[own or units].astype(np.float64).mean(0)
        if value.std() > 0 and effect.std() > 0:
            found.append(Neighbour(spec, float(np.corrcoef(effect, value)[0, 1]), float(np.sqrt((value**2).mean())), bool(own)))
    return sorted(found, key=lambda one: (-one.r, one.spec))[:most]
