"""Predicted effects on genes, with intervals: from predicted cells and what was learnt on effects that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, describe
from counterflow.data.source import whole
from counterflow.effects.intervals import Certainty, Intervals
from counterflow.effects.kriging import KrigedRule
from counterflow.effects.leaving_out import SIMPLE, simple_effects
from counterflow.errors import ConfigError, warn
from counterflow.recentring import N_CELLS
from counterflow.spaces.base import log_normalise
from counterflow.types import ConditionSpec

_ONE_WAY = 0.8  # mean sign of the perturbed genes' own effects, from which on a screen knocks down (or up)
_NOTHING = 0.05  # of log expression


@dataclass(frozen=True)
class PredictedEffect:
    """Mean log expression of predicted cells minus that of their controls, for one condition in one context. G genes."""

    spec: ConditionSpec
    context: tuple[str, ...]  # levels of match_keys
    support: str
    effect: NDArray[np.float64]  # G
    simple: dict[str, NDArray[np.float64]]  # rule of `SIMPLE` -> its effect (G); empty without a rule
    certainty: Certainty | None = None
    spread: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # G, standard deviation of the error
    strata: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))  # G, which quantiles hold for it

    def half_width(self, coverage: float) -> NDArray[np.float64]:
        """Of the interval, for each gene; nan where nothing is known."""
        return np.full(len(self.effect), np.nan) if self.certainty is None else self.certainty.reach(coverage)[self.strata] * self.spread

    @property
    def baseline(self) -> str | None:
        """The simple rule that was best on left-out effects of this kind."""
        return None if self.certainty is None else self.certainty.baseline

    @property
    def rival(self) -> NDArray[np.float64] | None:
        """What that rule says (G)."""
        return None if self.certainty is None else self.simple[self.certainty.baseline]


def effect_of(
    spec: ConditionSpec,
    controls: Screen,
    counts: sparse.csr_matrix,
    support: str,
    kind: str,
    rule: KrigedRule | None,
    intervals: Intervals | None,
    cells: float | None,
) -> PredictedEffect:
    """The effect that predicted `counts` (n x G) of `controls`, all of one context, amount to.

    `rule`: on genes; `cells`: how many cells the effect would be measured on (see `Intervals.noise`).
    """
    before, after = (_moments(log_normalise(of, controls.library)) for of in (whole(controls.counts), counts))
    effect = after[0] - before[0]
    level = controls.contexts[controls.context[0]]
    simple = {} if rule is None or not spec.parts else dict(zip(SIMPLE, (*simple_effects(rule), rule.anchor(spec)), strict=True))
    certainty = intervals.certainty(kind) if intervals is not None and spec.parts else None
    if certainty is None or intervals is None:
        return PredictedEffect(spec, level, support, effect, simple)
    noise = intervals.noise(kind, after[1], before[1], cells, N_CELLS)
    return PredictedEffect(
        spec, level, support, effect, simple, certainty, intervals.spread(certainty, effect, noise), intervals.strata(effect)
    )


def effect_table(
    effects: Iterable[PredictedEffect], genes: tuple[str, ...], setup: Setup, interval: float | None, on_target: Mapping[str, float]
) -> pd.DataFrame:
    """One row per condition, context and gene; `on_target`: direction in which a perturbed gene was seen to move, by perturbation."""
    blocks, without = [], []
    for one in effects:
        columns: dict[str, object] = {"condition": describe(one.spec, setup)}
        columns |= dict(zip(setup.match_keys, one.context, strict=True))
        columns |= {"gene": list(genes), "effect": one.effect}
        if interval is not None:
            half = one.half_width(interval)
            columns |= {"lo": one.effect - half, "hi": one.effect + half}
        columns["support"] = one.support
        if interval is not None:
            rival = np.full(len(genes), np.nan) if one.rival is None else one.rival
            columns |= {"baseline": one.baseline or "", "baseline_effect": rival, "beyond_baseline": np.abs(one.effect - rival) > half}
            columns["calibrated_on"] = 0 if one.certainty is None else one.certainty.n
            if one.certainty is None and one.spec.parts:
                without.append(str(columns["condition"]))
        columns["target"] = [gene in one.spec.parts for gene in genes]
        blocks.append(pd.DataFrame(columns))
    if without:
        warn(
            f"no interval for {len(dict.fromkeys(without))} conditions (first: {without[0]!r}): too few training conditions could be "
            "left out to learn how far such predictions miss; lo and hi are nan",
            above=3,
        )
    table = pd.concat(blocks, ignore_index=True)
    _check_targets(table, on_target)
    return table


def check_interval(interval: float | None, cells: float | None) -> None:
    """A coverage, and a number of cells that could be measured."""
    if interval is not None and not 0 < interval < 1:
        raise ConfigError(f"interval={interval}: the share of effects it should cover, between 0 and 1, e.g. 0.9; None for no interval")
    if cells is not None and not cells >= 1:
        raise ConfigError(
            f"cells={cells}: how many cells the effect would be measured on, at least 1; float('inf') for the population's own"
        )


def _check_targets(table: pd.DataFrame, on_target: Mapping[str, float]) -> None:
    """Say so where a perturbed gene is predicted to move against the direction in which nearly all perturbed genes of the screen moved."""
    signs = np.sign(list(on_target.values()))
    if not len(signs) or abs(signs.mean()) < _ONE_WAY:
        return
    usual, target = np.sign(signs.mean()), table[table["target"]]
    wrong = target[np.sign(target["effect"].where(target["effect"].abs() > _NOTHING, 0.0)) == -usual]
    if len(wrong):
        names = ", ".join(dict.fromkeys(wrong["gene"].astype(str)))
        warn(f"perturbed genes {'fall' if usual < 0 else 'rise'} in this screen; predicted the other way round: {names}", above=4)


def _moments(values: sparse.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    exact = values.astype(np.float64)
    mean = np.asarray(exact.mean(0)).ravel()
    return mean, np.maximum(np.asarray(exact.multiply(exact).mean(0)).ravel() - mean**2, 0)
