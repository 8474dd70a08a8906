"""What the same perturbation did in other cell types, donors or lines: means, and maps of whole distributions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from counterflow.data.screen import Screen
from counterflow.data.source import whole
from counterflow.evaluate.baselines.cells import log_expression, move_cells, quantile_mapped
from counterflow.evaluate.baselines.rule import Level, MeasuredRule, Situation
from counterflow.types import ConditionSpec

SHARPNESS = 3.0  # of the weights: exp(-3 distance / median distance)


class ContextRule(MeasuredRule):
    """A rule that weighs the training contexts by how like the asked one their controls are; the additive rule where there are none."""

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """A measured condition is asked for in a context where nothing was perturbed."""
        return situation.held_out_context

    def fit(self, cells: Screen) -> None:
        """Keep the training cells, and the control mean of every context."""
        super().fit(cells)
        self.cells = cells
        self.controls = {cells.contexts[c]: self._mean(0, c) for c in np.unique(cells.context[cells.is_control])}

    def _rows(self, condition: int, context: int) -> NDArray[np.intp]:
        return np.flatnonzero((self.cells.condition == condition) & (self.cells.context == context))

    def _expression(self, condition: int, context: int) -> NDArray[np.float32]:
        rows = self._rows(condition, context)
        return log_expression(self.cells.counts[rows], self.cells.library[rows])

    def _mean(self, condition: int, context: int) -> NDArray:
        return self._expression(condition, context).mean(0, dtype=np.float64)

    def weights(self, spec: ConditionSpec, control: NDArray) -> dict[int, float]:
        """Context code -> weight, nearest first, of the contexts where `spec` and the control were measured; sums to 1."""
        if spec not in self.cells.conditions:
            return {}
        code = self.cells.conditions.index(spec)
        found = [int(c) for c in np.unique(self.cells.context[self.cells.condition == code]) if self.cells.contexts[c] in self.controls]
        if not found:
            return {}
        distance = np.array([np.linalg.norm(control - self.controls[self.cells.contexts[c]]) for c in found])
        weight = np.exp(-SHARPNESS * (distance - distance.min()) / max(float(np.median(distance)), 1e-12))
        order = np.argsort(distance, kind="stable")
        return {found[i]: float(weight[i] / weight.sum()) for i in order}

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """Weighted mean of the effects in the chosen contexts."""
        del context
        chosen = self.choose(self.weights(spec, control))
        if not chosen:
            return self.additive(spec)
        code, total = self.cells.conditions.index(spec), sum(chosen.values())
        return sum(w * (self._mean(code, c) - self._mean(0, c)) for c, w in chosen.items()) / total  # type: ignore[return-value]

    def choose(self, weights: dict[int, float]) -> dict[int, float]:
        """The contexts that count."""
        return weights


class NearestContext(ContextRule):
    """The effect in the context whose controls are nearest."""

    name: ClassVar[str] = "nearest_context"

    def choose(self, weights: dict[int, float]) -> dict[int, float]:
        """The first."""
        return dict(list(weights.items())[:1])


class SimilarContexts(ContextRule):
    """The effects in all contexts, weighted by exp(-3 distance / median distance) of their controls."""

    name: ClassVar[str] = "similar_contexts"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """There are several to weigh."""
        return situation.several_contexts


class QuantileMap(ContextRule):
    """Per gene, the quantile map control -> perturbed of the two nearest contexts pooled. The best all-round on whole distributions."""

    name: ClassVar[str] = "quantile_map"

    def cells_of(self, spec: ConditionSpec, context: Level, controls: Screen) -> NDArray[np.float32]:
        """Mapped cells."""
        expression = log_expression(whole(controls.counts), controls.library)
        nearest = list(self.weights(spec, expression.mean(0, dtype=np.float64)).items())[:2] if spec.parts else []
        if not nearest:
            return move_cells(expression, self.additive(spec) if spec.parts else None)
        return self.mapped(expression, self.cells.conditions.index(spec), dict(nearest), np.random.default_rng(0))

    def mapped(self, expression: NDArray, code: int, nearest: dict[int, float], rng: np.random.Generator) -> NDArray[np.float32]:
        """One map from the cells of both contexts together."""
        control, perturbed = (np.concatenate([self._expression(condition, c) for c in nearest]) for condition in (0, code))
        return quantile_mapped(expression, control, perturbed, rng)


class WeightedQuantileMap(QuantileMap):
    """The quantile maps of the two nearest contexts, averaged by weight: the hardest plain baseline on held-out cell types."""

    name: ClassVar[str] = "qmap_top2"

    def mapped(self, expression: NDArray, code: int, nearest: dict[int, float], rng: np.random.Generator) -> NDArray[np.float32]:
        """Every cell and gene takes the map of one of the two, so that zeros stay zeros."""
        maps = [quantile_mapped(expression, self._expression(0, c), self._expression(code, c), rng) for c in nearest]
        if len(maps) == 1:
            return maps[0]
        first = list(nearest.values())[0] / sum(nearest.values())
        return np.where(rng.random(expression.shape) < first, maps[0], maps[1])


class ResampleNearest(ContextRule):
    """Real perturbed cells of the nearest context, or of the combination's strongest part, moved to the additive mean."""

    name: ClassVar[str] = "resample_nearest"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """There is a nearest context or a part."""
        return situation.held_out_context or situation.combinations

    def cells_of(self, spec: ConditionSpec, context: Level, controls: Screen) -> NDArray[np.float32]:
        """As many cells as there are controls, drawn at random."""
        expression = log_expression(whole(controls.counts), controls.library)
        control = expression.mean(0, dtype=np.float64)
        real = self._donors(spec, control) if spec.parts else None
        if real is None:
            return move_cells(expression, self.additive(spec) if spec.parts else None)
        drawn = real[np.random.default_rng(0).choice(len(real), len(expression), replace=len(real) < len(expression))]
        return move_cells(drawn, np.maximum(control + self.additive(spec), 0) - drawn.mean(0, dtype=np.float64))

    def _donors(self, spec: ConditionSpec, control: NDArray) -> NDArray | None:
        candidates = [spec] if spec in self.cells.conditions else []
        parts = [ConditionSpec((part,), (dose,), spec.time) for part, dose in zip(spec.parts, spec.doses, strict=True)]
        candidates += sorted((p for p in parts if p in self.cells.conditions), key=lambda p: -float(np.linalg.norm(self.additive(p))))
        for candidate in candidates:
            nearest = list(self.weights(candidate, control))
            if nearest:
                return self._expression(self.cells.conditions.index(candidate), nearest[0])
        return None
