"""The default recipe: measure the additive rule, fit the flow to what it leaves, and learn on left-out conditions how far that holds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from counterflow.calibration import Judged, folds, judge, learn_trust
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.ledger import Ledger
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen
from counterflow.effects.kriging import KrigedRule
from counterflow.fitting import fit_rule, training_steps
from counterflow.module import FlowModule
from counterflow.prediction import displaced
from counterflow.recentring import Trust
from counterflow.reflow import Reflow
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

States = Callable[[np.ndarray], Tensor]
_VALIDATION_STEPS = 8
_TIMED_STEPS, _TIMED_SHARE = 40, 0.05


@dataclass(frozen=True)
class Recipe:
    """How to fit one flow, as often as needed.

    Parameters
    ----------
    build
        Entities with an identity of their own -> an untrained network.
    anchored
        Whether the flow starts from the additive rule.
    plan
        ``n_sets``, ``set_size``, ``seed``, ``start`` and ``stop`` of the batches.
    options
        Of `counterflow.training.fit`.
    ledger
        Where it is written down which cells were learned from.
    """

    build: Callable[[frozenset[str]], FlowModule]
    setup: Setup
    vocabulary: Vocabulary
    anchored: bool
    plan: dict[str, Any]
    options: dict[str, Any]
    ledger: Ledger

    def fit(
        self, cells: Screen, states: States, validation: tuple[Screen, States] | None = None, **files: Any
    ) -> tuple[FlowModule, KrigedRule | None, list[dict[str, float]]]:
        """A trained network, the rule it was anchored on, and the training history. `files`: where the run is logged and resumed."""
        from counterflow import training

        rule = fit_rule(cells, states, self.ledger) if self.anchored else None
        self.ledger.record("weights", cells.keys)
        module = self.build(self.vocabulary.seen)
        anchor = None if rule is None else rule.anchor
        steps = training_steps(cells, states, self.vocabulary, anchor, self.setup, anchors=True, **self.plan)
        watched = None
        if validation is not None:
            self.ledger.record("validation", validation[0].keys)
            plan = self.plan | {"start": 0, "stop": _VALIDATION_STEPS}
            watched = training_steps(*validation, self.vocabulary, anchor, self.setup, anchors=False, **plan)
        history = training.fit(module, steps, watched, **self.options, **files)
        return module.cpu().eval(), rule, history

    def reflow(self, cells: Screen, states: States, teacher: FlowModule, rule: KrigedRule | None, max_steps: int) -> FlowModule:
        """A network that starts as `teacher` and learns nearly straight lines from the pairs that it makes."""
        from counterflow import training

        module = copy.deepcopy(teacher)
        plan = self.plan | {"start": 0, "stop": max_steps}
        steps = training_steps(cells, states, self.vocabulary, None if rule is None else rule.anchor, self.setup, anchors=True, **plan)
        training.fit(Reflow(module, teacher), steps, None, **self.options)
        return module.cpu().eval()

    def steps_within(self, seconds: float, cells: Screen, states: States) -> int:
        """Optimiser steps of each fit that take this many processor seconds in all, from what a few of them take; at least 1."""
        from counterflow.callbacks import Stopwatch

        started = time.process_time()
        watch = Stopwatch(_TIMED_SHARE * seconds)
        replace(self, plan=self.plan | {"start": 0, "stop": _TIMED_STEPS}, ledger=Ledger()).fit(cells, states, callbacks=[watch])
        n_fits = 1 + (sum(1 for _ in folds(cells, self.vocabulary.generalises, self.plan["seed"])) if self.anchored else 0)
        return max(1, int((seconds - (time.process_time() - started)) / (n_fits * watch.per_step())))

    def trust(self, cells: Screen, states: States, module: FlowModule, rule: KrigedRule) -> dict[str, Trust]:
        """How far the flow is trusted beyond the rule, per kind of generalisation: fits on less, judged on what was left out.

        `module` and `rule` were fitted on all `cells`: they tell how far the flow's spread holds for what was measured.
        """
        self.ledger.record("recipe", cells.keys)
        units = self.judged(cells, states, ~cells.is_control, module, rule)
        for left_out in folds(cells, self.vocabulary.generalises, self.plan["seed"]):
            units += self._left_out(cells, states, left_out)
        return learn_trust(units)

    def _left_out(self, cells: Screen, states: States, left_out: np.ndarray) -> list[Judged]:
        """How a flow and a rule that were fitted on the other cells do on these."""
        kept = np.flatnonzero(~left_out)
        fewer = cells.rows(kept)
        less = replace(self, vocabulary=_without(self.vocabulary, fewer), ledger=Ledger())
        module, rule, _ = less.fit(fewer, lambda rows: states(kept[rows]))
        assert rule is not None
        return less.judged(cells, states, left_out, module, rule)

    def judged(self, cells: Screen, states: States, some: np.ndarray, module: FlowModule, rule: KrigedRule) -> list[Judged]:
        """How a flow and a rule do on some perturbed cells."""

        def displacement(rows: np.ndarray, spec: ConditionSpec) -> Tensor:
            some = cells.rows(rows)
            levels = {key: list(some.covariates[key]) for key in self.vocabulary.covariates}
            ids, factual = (self.vocabulary.ids([what] * len(rows), levels) for what in (spec, ConditionSpec()))
            return displaced(module, states(rows), some, ids, factual, Sampling())

        return list(judge(cells, some, states, displacement, rule))


def _without(vocabulary: Vocabulary, kept: Screen) -> Vocabulary:
    """The same numbering, with only what the kept cells have met."""
    perturbed = ~kept.is_control
    return replace(
        vocabulary,
        seen=frozenset(part for code in np.unique(kept.condition) for part in kept.conditions[code].parts),
        perturbed_levels={key: frozenset(kept.covariates[key][perturbed]) for key in vocabulary.covariates},
    )
