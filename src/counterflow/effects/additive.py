"""Mean effects of measured conditions, and the additive rule that extends them to unmeasured ones.

The rule is both a baseline (on log expression) and what the flow starts from (on the state): one definition for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from counterflow.errors import DataError
from counterflow.types import ConditionSpec


@dataclass(frozen=True)
class MeanEffects:
    """Differences of means, target minus matched controls, for each measured (condition, context)."""

    specs: tuple[ConditionSpec, ...]  # the distinct conditions, without the control
    effect: np.ndarray  # P x F, mean over contexts with equal weight


def mean_effects(
    values: Callable[[np.ndarray], np.ndarray], specs: Sequence[ConditionSpec], condition: np.ndarray, context: np.ndarray
) -> MeanEffects:
    """Measure the effect of every condition in a space; condition 0 is the control.

    `values` gives the rows of the space (n x F) for an array of cell positions. Contexts without controls are ignored.
    """
    means = {
        (code, c): values(np.flatnonzero((condition == code) & (context == c))).mean(0)
        for code, c in set(zip(condition.tolist(), context.tolist(), strict=True))
    }
    kept, effects = [], []
    for code in sorted({code for code, _ in means} - {0}):
        pairs = [(means[code, c], means[0, c]) for c in np.unique(context) if (code, c) in means and (0, c) in means]
        if pairs:
            kept.append(specs[code])
            effects.append(np.mean([target - control for target, control in pairs], 0))
    if not kept:
        raise DataError("no perturbed cell shares the levels of match_keys with a control cell: drop a key from match_keys")
    return MeanEffects(tuple(kept), np.array(effects))


@dataclass(frozen=True)
class AdditiveRule:
    """Effect of a condition = sum of the effects of its parts, each interpolated in dose and time from zero.

    Parts measured alone keep their own effect; parts measured only in combinations get a least-squares share of what is left.
    Beyond the measured doses and times the last level holds. An unmeasured part has the mean effect of the measured parts.
    """

    curves: dict[str, dict[tuple[float, float], np.ndarray]]  # part -> (dose, time) -> effect
    generic: np.ndarray  # F, mean effect of the measured parts

    @classmethod
    def fit(cls, measured: MeanEffects) -> AdditiveRule:
        """Read the rule off measured effects."""
        effect = measured.effect
        curves: dict[str, dict[tuple[float, float], np.ndarray]] = {}
        for spec, value in zip(measured.specs, effect, strict=True):
            if len(spec.parts) == 1:
                curves.setdefault(spec.parts[0], {})[spec.doses[0], spec.time] = value
        combined = [(spec, value) for spec, value in zip(measured.specs, effect, strict=True) if len(spec.parts) > 1]
        for level, value in _shares(combined, curves).items():
            curves.setdefault(level[0], {})[level[1:]] = value
        means = [np.mean(list(levels.values()), 0) for levels in curves.values()]
        return cls(curves, np.mean(means, 0))

    def __call__(self, spec: ConditionSpec) -> np.ndarray:
        """Effect of `spec` (F); zero for the control."""
        total = np.zeros_like(self.generic)
        for part, dose in zip(spec.parts, spec.doses, strict=True):
            total = total + (_at(self.curves[part], dose, spec.time) if part in self.curves else self.generic)
        return total


def _shares(
    combined: list[tuple[ConditionSpec, np.ndarray]], known: dict[str, dict[tuple[float, float], np.ndarray]]
) -> dict[tuple[str, float, float], np.ndarray]:
    """Effects of the parts that were measured in combinations only, by least squares on what their partners leave."""
    levels = sorted({(p, d, s.time) for s, _ in combined for p, d in zip(s.parts, s.doses, strict=True) if p not in known})
    if not levels:
        return {}
    column = {level: i for i, level in enumerate(levels)}
    rows, rest = [], []
    for spec, value in combined:
        row, left = np.zeros(len(levels)), value
        for part, dose in zip(spec.parts, spec.doses, strict=True):
            if part in known:
                left = left - _at(known[part], dose, spec.time)
            else:
                row[column[part, dose, spec.time]] += 1
        if row.any():
            rows.append(row)
            rest.append(left)
    solution = np.linalg.lstsq(np.array(rows), np.array(rest), rcond=None)[
        0
    ]  # least norm: partners share equally what cannot be told apart
    return dict(zip(levels, solution, strict=True))


def _at(levels: dict[tuple[float, float], np.ndarray], dose: float, time: float) -> np.ndarray:
    """A dose-time curve at one point: along time at each measured dose, then along log(1 + dose); zero at dose 0 and time 0."""
    doses = sorted({d for d, _ in levels})
    along = [_line([t for d_, t in sorted(levels) if d_ == d], [levels[key] for key in sorted(levels) if key[0] == d], time) for d in doses]
    return _line(list(np.log1p(doses)), along, float(np.log1p(dose)))


def _line(at: list[float], values: list[np.ndarray], where: float) -> np.ndarray:
    """Piecewise-linear, anchored at (0, 0) unless 0 is the only level, constant beyond the last."""
    if at[0] > 0:
        at, values = [0.0, *at], [np.zeros_like(values[0]), *values]
    right = int(np.searchsorted(at, where))
    if right >= len(at):
        return values[-1]
    if right == 0 or at[right] == where:
        return values[right]
    share = (where - at[right - 1]) / (at[right] - at[right - 1])
    return (1 - share) * values[right - 1] + share * values[right]
