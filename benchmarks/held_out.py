"""What four benchmarks share: a fit of the flow alone, and its held-out conditions, context by context, in states."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import counterflow as cf
from counterflow.data.screen import Screen
from counterflow.evaluate.metrics import energy
from counterflow.recipe import Recipe
from counterflow.types import ConditionIds, ConditionSpec

CELLS, FEWEST = 128, 8


def train_the_flow(model: cf.CounterFlow, **how: Any) -> cf.CounterFlow:
    """Beside the rule, if there is one, and without the fits that tell how far it is trusted."""
    with (
        warnings.catch_warnings(),
        mock.patch("counterflow.recipe.folds", return_value=[]),
        mock.patch.object(Recipe, "trust", return_value={}),
    ):
        warnings.simplefilter("ignore")
        model.train(progress=False, **how)
    return model


@dataclass(frozen=True)
class Unit:
    """One held-out condition in one context."""

    spec: ConditionSpec
    controls: Screen  # the cells that are moved, 128 at most
    before: Tensor  # n x S
    real: np.ndarray  # m x S
    ids: ConditionIds
    factual: ConditionIds
    anchor: np.ndarray  # S, what the rule says

    def scores(self, cells: np.ndarray) -> tuple[float, float]:
        """Squared error of the mean, and energy distance, of predicted states; both relative to the controls as they are."""
        control = self.before.double().numpy()
        far = ((control.mean(0) - self.real.mean(0)) ** 2).sum()
        mean = ((cells.mean(0) - self.real.mean(0)) ** 2).sum() / far
        return float(mean), float(energy(cells, self.real) / energy(control, self.real))

    def noise(self) -> Tensor:
        """Where a noise source starts, the same every time."""
        return torch.randn(self.before.shape, generator=torch.Generator().manual_seed(0))


def units(model: cf.CounterFlow) -> Iterator[Unit]:
    """The ``test`` conditions of the AnnData that a model was given, where there are cells enough."""
    screen = model._screen
    test = (screen.split == "test") & ~screen.is_control
    for code, context in sorted(set(zip(screen.condition[test].tolist(), screen.context[test].tolist(), strict=True))):
        spec, target = screen.conditions[code], np.flatnonzero(test & (screen.condition == code) & (screen.context == context))
        if len(target) < FEWEST:
            continue
        some = screen.rows(np.flatnonzero(screen.is_control & (screen.context == context))[:CELLS])
        before, real = model.space.encode(some.counts, some.library), model.space.encode(screen.counts[target], screen.library[target])
        levels = {key: list(some.covariates[key]) for key in model.vocabulary.covariates}
        ids, factual = (model.vocabulary.ids([what] * len(before), levels) for what in (spec, ConditionSpec()))
        anchor = np.zeros(before.shape[1]) if model.rule is None else np.asarray(model.rule.states.anchor(spec))
        yield Unit(spec, some, before, real.double().numpy(), ids, factual, anchor)
