"""Where the population goes and how its cells differ: rule and flow, each trusted as far as it was right on left-out conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterflow.data.screen import Screen
from counterflow.data.source import whole
from counterflow.effects.kriging import KrigedRule, Level, MeasuredEffects
from counterflow.prediction import Correction
from counterflow.spaces.base import StateSpace, log_normalise
from counterflow.spaces.calibrated import gene_factors
from counterflow.spaces.counts import cell_seeds, distinct_names
from counterflow.types import ConditionSpec

MOST_FACTORS = 256  # conditions and contexts whose gene factors are remembered: finding them takes longer than predicting a hundred cells
N_CELLS = 256  # controls of a context that its correction is measured on: enough to tell a mean


@dataclass(frozen=True)
class Trust:
    """How far to trust the flow: 0 is the rule, 1 the flow."""

    mean: float  # for where the population goes
    spread: float  # for how its cells differ
    n: int = 0  # left-out conditions and contexts that it was learnt on


NONE = Trust(0.0, 0.0)


class Origins:
    """The control cells that corrections are measured on: those of the model in each context, once encoded; without any there, given ones.

    `N_CELLS` of them, repeated where there are fewer.
    """

    def __init__(self, reference: Screen | None, space: StateSpace) -> None:
        self.reference, self.space = reference, space
        self._known: dict[Level, tuple[Screen, Tensor]] = {}
        self._factors: dict[tuple[ConditionSpec, Level, float], np.ndarray] = {}

    def of(self, cells: Screen, context: int) -> tuple[Screen, Tensor]:
        """Controls and their states, for a context of `cells`."""
        level = cells.contexts[context]
        if level in self._known:
            return self._known[level]
        known = self.reference is not None and level in self.reference.contexts
        if self.reference is not None and known:
            cells, context = self.reference, self.reference.contexts.index(level)
        here = np.flatnonzero(cells.context == context)
        seeds = cell_seeds([cells.cells[row] for row in here])
        here = np.sort(here[np.argsort(seeds)][:N_CELLS])
        chosen = cells.rows(np.tile(here, -(-N_CELLS // len(here))))
        chosen = replace(chosen, cells=distinct_names(chosen.cells))
        found = chosen, self.space.encode(whole(chosen.counts), chosen.library)
        if known:
            self._known[level] = found
        return found

    def factors(self, spec: ConditionSpec, level: Level, scale: float, find: Callable[[], np.ndarray]) -> np.ndarray:
        """What `find` finds for a condition in a context; looked up where it was found before, on the model's own controls."""
        key = spec, level, scale
        if level not in self._known:
            return find()
        if key not in self._factors:
            self._factors[key] = find()
            if len(self._factors) > MOST_FACTORS:
                del self._factors[next(iter(self._factors))]
        return self._factors[key]


@dataclass(frozen=True)
class Recentring:
    """The rule in the space and on the genes."""

    states: KrigedRule
    genes: KrigedRule

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON and arrays; both rules are of the same conditions and contexts."""
        m = self.genes.measured
        described = {
            "conditions": [[list(spec.parts), list(spec.doses), spec.time] for spec in m.specs],
            "contexts": [list(level) for level in m.levels],
            "units": np.stack([m.spec_of, m.level_of], 1).tolist(),
        }
        arrays = {
            f"rule.{name}.{field}": getattr(rule.measured, field)
            for name, rule in (("states", self.states), ("genes", self.genes))
            for field in ("effect", "noise", "control")
        }
        return described, arrays

    @classmethod
    def from_parts(cls, described: dict[str, Any], arrays: dict[str, np.ndarray]) -> Recentring:
        """Inverse of `to_parts`."""
        specs = tuple(ConditionSpec(tuple(parts), tuple(map(float, doses)), float(time)) for parts, doses, time in described["conditions"])
        levels = tuple(tuple(level) for level in described["contexts"])
        spec_of, level_of = np.array(described["units"], dtype=np.int64).reshape(-1, 2).T

        def rule(name: str, floor: float | None) -> KrigedRule:
            values = (arrays[f"rule.{name}.{field}"] for field in ("effect", "noise", "control"))
            return KrigedRule(MeasuredEffects(specs, levels, spec_of, level_of, *values), floor)

        return cls(rule("states", None), rule("genes", 0.0))

    def correction(
        self,
        spec: ConditionSpec,
        cells: Screen,
        support: Sequence[str],
        origins: Origins,
        displacement: Callable[[Screen, Tensor], Tensor],
        trust: Mapping[str, Trust],
        *,
        scale: float,
        calibrated: bool,
    ) -> Correction:
        """The correction of `spec` for control `cells`, one per context and support label.

        Parameters
        ----------
        origins
            The control cells to measure on.
        displacement
            (controls, their states) -> by how much the flow alone moves them (n x S).
        trust
            By support label.
        scale
            Multiplies the rule's effects (contrast guidance; 1 for none).
        calibrated
            Whether gene means are set to those of the rule.
        """
        labels = list(zip(cells.context.tolist(), support, strict=True))
        groups = sorted(set(labels))
        number = {label: i for i, label in enumerate(groups)}
        anchor = scale * self.states.anchor(spec)
        shift, center, spread, factor = [], [], [], []
        for context, label in groups:
            controls, state = origins.of(cells, context)
            level = cells.contexts[context]
            moved = displacement(controls, state).mean(0).double().numpy()
            here = state.double().mean(0).numpy()
            rule = scale * self.states.effect(spec, level, here)
            center.append(moved)
            shift.append(rule + trust[label].mean * (anchor + moved - rule))
            spread.append(trust[label].spread)
            if calibrated:
                find = partial(self._factors, spec, level, controls, state, rule, origins.space, scale)
                factor.append(origins.factors(spec, level, scale, find))
        return Correction(
            torch.from_numpy(np.array(shift, dtype=np.float32)),
            torch.from_numpy(np.array(center, dtype=np.float32)),
            torch.tensor(spread, dtype=torch.float32),
            torch.from_numpy(anchor.astype(np.float32)).expand(len(groups), -1),
            np.array(factor) if calibrated else None,
            np.array([number[label] for label in labels], dtype=np.int64),
        )

    def _factors(
        self,
        spec: ConditionSpec,
        level: tuple[str, ...],
        controls: Screen,
        state: Tensor,
        rule: np.ndarray,
        space: StateSpace,
        scale: float,
    ) -> np.ndarray:
        counts = whole(controls.counts)
        mean = np.asarray(log_normalise(counts, controls.library).astype(np.float64).mean(0)).ravel()
        exposure = space.exposure(counts, controls.library)
        before = space.decode(state, exposure)
        after = space.decode(state + torch.from_numpy(rule).float(), exposure)
        wanted = np.maximum(mean + scale * self.genes.effect(spec, level, mean), 0)
        dispersion = space.dispersion.cpu().numpy()
        return gene_factors(counts.toarray(), controls.library, before, after, wanted, dispersion, cell_seeds(controls.cells))
