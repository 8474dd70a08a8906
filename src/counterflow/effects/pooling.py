"""Effects of parts from everything they were measured in: alone and inside combinations.

Another estimator of combinations than the parts as measured alone (`counterflow.effects.interactions`). A measured effect is ``sum of the
parts + interaction + noise``, each independent with a variance of its own, and the prediction is the best linear one: a part that was
measured in three combinations is known better than by its own cells. It knows nothing of interactions, so it wins where there are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterflow.types import ConditionSpec


@dataclass(frozen=True)
class PooledParts:
    """Effects of the parts (A x F); a part at another dose or time is another one."""

    rows: dict[ConditionSpec, int]
    parts: NDArray[np.float64]

    @classmethod
    def fit(cls, specs: Sequence[ConditionSpec], effects: NDArray, noise: NDArray) -> PooledParts:
        """From measured conditions (P), their effects (P x F) and the variance of their errors (P), mean over features."""
        alone = {spec: i for i, spec in enumerate(specs) if len(spec.parts) == 1}
        combined = sorted({part for spec in specs if len(spec.parts) > 1 for part in parts_of(spec)})
        own = [float((effects[i] ** 2).mean() - noise[i]) for i in alone.values()]
        size = max(float(np.mean(own)) if own else float((effects**2).mean()), 1e-12)
        loose = [part for part in alone if part not in set(combined)]  # only their own cells tell about them
        found = [size / (size + noise[alone[part]]) * effects[alone[part]] for part in loose]
        rows = {part: i for i, part in enumerate([*loose, *combined])}
        if not combined:
            return cls(rows, np.array(found))
        used = [i for i, spec in enumerate(specs) if spec not in set(loose)]
        design = np.array([[parts_of(specs[i]).count(part) for part in combined] for i in used], dtype=float)
        variance = _interaction(specs, effects, noise, alone, size) * (design.sum(1) > 1) + noise[used] + 1e-9 * size
        scaled = design.T / variance
        solved = np.linalg.solve(scaled @ design + np.eye(len(combined)) / size, scaled @ effects[used])
        return cls(rows, np.vstack([*found, solved]))

    def __contains__(self, spec: ConditionSpec) -> bool:
        """Whether all parts were measured."""
        return all(part in self.rows for part in parts_of(spec))

    def __call__(self, spec: ConditionSpec) -> NDArray[np.float64]:
        """Sum (F) over the parts."""
        return self.parts[[self.rows[part] for part in parts_of(spec)]].sum(0)


def _interaction(specs: Sequence[ConditionSpec], effects: NDArray, noise: NDArray, alone: dict[ConditionSpec, int], size: float) -> float:
    """Variance of what the parts as measured alone leave of combinations; that of the parts, where none was measured so."""
    left = []
    for i, spec in enumerate(specs):
        among = [alone[part] for part in parts_of(spec) if part in alone]
        if len(among) == len(spec.parts) > 1:
            left.append(float(((effects[i] - effects[among].sum(0)) ** 2).mean() - noise[i] - noise[among].sum()))
    return max(float(np.mean(left)), 0.0) if left else size


def parts_of(spec: ConditionSpec) -> list[ConditionSpec]:
    """Its parts alone, at the doses and the time they have in it."""
    return [ConditionSpec((part,), (dose,), spec.time) for part, dose in zip(spec.parts, spec.doses, strict=True)]
