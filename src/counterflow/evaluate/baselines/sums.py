"""Nothing, one response for everything, and sums over the parts of a combination."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from counterflow.data.screen import Screen
from counterflow.evaluate.baselines.rule import Level, MeasuredRule, Rule, Situation, known_effects
from counterflow.types import ConditionSpec


class Control(Rule):
    """Nothing happens: the control cells themselves. The floor of every table."""

    name: ClassVar[str] = "control"

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """None."""
        del spec, context, control
        return None


class PerturbationMean(MeasuredRule):
    """The mean effect of the training conditions, whatever is asked for: one generic response on top of the context's own control."""

    name: ClassVar[str] = "mean"

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """The same for every condition."""
        del spec, context, control
        return self.generic


class Additive(MeasuredRule):
    """Sum of the parts' effects, each averaged over contexts and interpolated in dose and time (`AdditiveRule`).

    For a condition that was measured in other contexts it is the mean of its effects there.
    """

    name: ClassVar[str] = "additive"

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """The additive rule."""
        del context, control
        return self.additive(spec)


class AdditiveScaled(Additive):
    """The additive rule times one number, fitted by least squares on the combinations of training: most are sub-additive."""

    name: ClassVar[str] = "additive_scaled"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """Combinations are asked for, and some were measured."""
        return situation.combinations and situation.trained_combinations

    def fit(self, cells: Screen) -> None:
        """Fit the factor on combinations whose parts were measured alone; 1 without any."""
        super().fit(cells)
        alone = {spec.parts[0] for spec in self.measured.specs if len(spec.parts) == 1}
        pairs = [(self.additive(s), e) for s, e in known_effects(self.measured).items() if len(s.parts) > 1 and alone.issuperset(s.parts)]
        squares = sum(float(rule @ rule) for rule, _ in pairs)
        self.factor = sum(float(rule @ real) for rule, real in pairs) / squares if squares else 1.0

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """Scaled for combinations only."""
        del context, control
        return self.additive(spec) * (self.factor if len(spec.parts) > 1 else 1.0)


class MatchingMean(MeasuredRule):
    """The mean of the parts' profiles, the generic response standing in for unseen parts (Systema, Nat Biotechnol 2025)."""

    name: ClassVar[str] = "matching_mean"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """Combinations are asked for."""
        return situation.combinations

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """Mean over parts."""
        del context, control
        alone = (ConditionSpec((part,), (dose,), spec.time) for part, dose in zip(spec.parts, spec.doses, strict=True))
        return np.mean([self.additive(part) if part.parts[0] in self.additive.curves else self.generic for part in alone], 0)
