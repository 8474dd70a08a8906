"""Combinations that were not measured, from those that were: two estimators, mixed by how each did on combinations left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterflow.effects.interactions import Interactions
from counterflow.effects.pooling import PooledParts, parts_of
from counterflow.effects.stacking import learnt_weight
from counterflow.types import ConditionSpec

FOLDS = 10  # combinations are left out in as many turns, one by one where there are fewer
MOST_JUDGED = 512  # combinations


@dataclass(frozen=True)
class Combinations:
    """Effects of combinations, given those of their parts."""

    interactions: Interactions
    pooled: PooledParts | None
    weight: float  # of the pooled parts

    @classmethod
    def fit(
        cls,
        parts: Mapping[ConditionSpec, tuple[NDArray, float]],
        specs: Sequence[ConditionSpec],
        effects: NDArray,
        noise: NDArray,
    ) -> Combinations:
        """Learn from measured conditions.

        Parameters
        ----------
        parts
            Effect (F) of each part alone, at the dose and time it has in a combination, and its mean variance of error. Combinations
            with other parts tell about their parts only.
        specs, effects, noise
            Measured conditions (P), their effects (P x F) and mean variances of error (P).
        """
        known = np.array([i for i, spec in enumerate(specs) if len(spec.parts) > 1 and all(part in parts for part in parts_of(spec))], int)
        interactions = _interactions(parts, [specs[i] for i in known], effects[known], noise[known])
        if not len(known):
            return cls(interactions, None, 0.0)
        judged = known[np.unique(np.linspace(0, len(known) - 1, min(MOST_JUDGED, len(known))).astype(int))]
        missed, beyond = [], []
        for fold in range(min(FOLDS, len(judged))):
            left_out = judged[fold::FOLDS]
            kept = np.setdiff1d(judged, left_out)
            base = _interactions(parts, [specs[i] for i in kept], effects[kept], noise[kept])
            others = np.setdiff1d(np.arange(len(specs)), left_out)
            pooled = PooledParts.fit([specs[i] for i in others], effects[others], noise[others])
            for i in left_out:
                if specs[i] in pooled:
                    alone = np.array([parts[part][0] for part in parts_of(specs[i])])
                    predicted = base(alone.sum(0), alone)
                    missed.append(effects[i] - predicted)
                    beyond.append(pooled(specs[i]) - predicted)
        return cls(interactions, PooledParts.fit(specs, effects, noise), learnt_weight(missed, beyond))

    def __call__(self, spec: ConditionSpec, total: NDArray, parts: NDArray) -> NDArray:
        """Effect (F): `parts` (k x F) are those of its parts, as in `fit`; `total` is their sum where it is asked for."""
        effect = self.interactions(total, parts)
        if self.weight == 0 or self.pooled is None or spec not in self.pooled:
            return effect
        return effect + self.weight * (self.pooled(spec) - self.interactions(parts.sum(0), parts))


def _interactions(
    parts: Mapping[ConditionSpec, tuple[NDArray, float]], specs: Sequence[ConditionSpec], effects: NDArray, noise: NDArray
) -> Interactions:
    """From combinations whose parts are all known."""
    if not specs:
        return Interactions.none()
    rows: dict[ConditionSpec, int] = {}
    members = [tuple(rows.setdefault(part, len(rows)) for part in parts_of(spec)) for spec in specs]
    errors = noise + np.array([sum(parts[part][1] for part in parts_of(spec)) for spec in specs])
    return Interactions.fit(np.array([parts[part][0] for part in rows]), members, effects, errors)
