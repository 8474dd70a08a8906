"""Doses and times between measured ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from counterflow.data.screen import Screen
from counterflow.data.source import whole
from counterflow.evaluate.baselines.cells import log_expression, move_cells
from counterflow.evaluate.baselines.rule import Level, MeasuredRule, Situation
from counterflow.types import ConditionSpec


class Interpolate(MeasuredRule):
    """Cells of the neighbouring doses or times, mixed: some cells have responded, others have not. Level 0 is the control."""

    name: ClassVar[str] = "interpolate"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """A measured perturbation is asked for at another dose or time."""
        return situation.levels

    def fit(self, cells: Screen) -> None:
        """Keep the training cells."""
        super().fit(cells)
        self.cells = cells

    def cells_of(self, spec: ConditionSpec, context: Level, controls: Screen) -> NDArray[np.float32]:
        """Controls replaced by real cells of the level below (or left alone) and above."""
        expression = log_expression(whole(controls.counts), controls.library)
        here = np.isin(self.cells.context, [c for c, level in enumerate(self.cells.contexts) if level == context])
        measured = sorted({self.cells.conditions[c] for c in np.unique(self.cells.condition[here & ~self.cells.is_control])})
        levels = {_where(other): other for other in measured if other.parts == spec.parts and _comparable(other, spec)}
        if not spec.parts or not levels:
            return move_cells(expression, self.additive(spec) if spec.parts else None)
        wanted = _where(spec)
        below, above = max((x for x in levels if x <= wanted), default=0.0), min((x for x in levels if x >= wanted), default=max(levels))
        share = (wanted - below) / (above - below) if above > below else 1.0
        rng = np.random.default_rng(0)
        up = rng.random(len(expression)) < min(max(share, 0.0), 1.0)
        out = expression.copy()
        for chosen, level in ((up, above), (~up, below)):
            if level in levels and chosen.any():
                rows = np.flatnonzero(here & (self.cells.condition == self.cells.conditions.index(levels[level])))
                drawn = rng.choice(rows, int(chosen.sum()), replace=len(rows) < chosen.sum())
                out[chosen] = log_expression(self.cells.counts[drawn], self.cells.library[drawn])
        return out


def _where(spec: ConditionSpec) -> float:
    """Position on the path of doses (logarithmic) and times."""
    return float(np.mean(np.log1p(spec.doses))) + spec.time


def _comparable(other: ConditionSpec, spec: ConditionSpec) -> bool:
    """Differs in dose or in time, not in both."""
    return other.time == spec.time or other.doses == spec.doses
