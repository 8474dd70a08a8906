"""How far to trust the flow beyond the additive rule: one weight per kind of generalisation, learnt on left-out training conditions.

A prediction is ``x0 + rule + w (flow(x0) - x0)``. Where the data carry nothing more than the rule (few noisy cells per condition)
the flow's part is noise and w goes to 0; where they do (whole cell types) it stays at 1. Conditions that were measured keep w = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from counterflow.data.screen import Screen
from counterflow.types import ConditionSpec

UNTESTED = {"seen": 1.0, "combination": 0.0, "part": 0.5, "level": 0.0, "feature": 0.5, "context": 0.5, "unknown": 0.0}
"""The weight of each kind where there are too few conditions to learn it: the rule for combinations
and for doses and times (which it interpolates), half way for the rest.

seen: measured. combination: its parts were measured alone. part: some only inside other combinations. level: another dose or time.
feature: not measured, but has features. context: its context never met a perturbation. unknown: nothing is known but the mean effect.
"""
_FOLDS, _OF = 2, 3  # conditions are dealt into three parts; two of them are left out, one after the other
_FEWEST = 3  # eligible conditions of a kind


def kind_of(spec: ConditionSpec, measured: frozenset[ConditionSpec]) -> str:
    """The kind of generalisation that predicting `spec` needs, from conditions measured in training (contexts apart)."""
    if not spec.parts or spec in measured:
        return "seen"
    alone = {part for other in measured if len(other.parts) == 1 for part in other.parts}
    inside = {part for other in measured for part in other.parts}
    if set(spec.parts) <= alone:
        return "combination" if len(spec.parts) > 1 else "level"
    return "part" if set(spec.parts) <= inside else "feature"


def folds(screen: Screen, has_features: bool, seed: int) -> Iterator[np.ndarray]:
    """Cells to leave out (masks over the training cells), a few conditions of every kind at a time."""
    draw = np.random.default_rng([seed, 5])
    perturbed = np.unique(screen.condition[~screen.is_control])
    contexts = np.unique(screen.context[~screen.is_control])
    singles = [code for code in perturbed if len(screen.conditions[code].parts) == 1]
    entities = [screen.conditions[code].parts for code in singles]
    groups = {
        "context": [("context", c) for c in contexts],
        "combination": [("condition", code) for code in perturbed if len(screen.conditions[code].parts) > 1],
        "level": [("condition", code) for code in singles if entities.count(screen.conditions[code].parts) > 1],
        "feature": [("part", part) for part in sorted({parts[0] for parts in entities})] if has_features else [],
    }
    dealt = [[items[i] for i in draw.permutation(len(items))] for items in groups.values() if len(items) >= _FEWEST]
    for fold in range(_FOLDS if dealt else 0):
        mask = np.zeros(len(screen.cells), dtype=bool)
        for axis, value in (item for items in dealt for item in items[fold::_OF]):
            mask |= _cells(screen, axis, value)
        yield mask & ~screen.is_control


def _cells(screen: Screen, axis: str, value: int | str) -> np.ndarray:
    if axis == "part":
        return np.isin(screen.condition, [code for code, spec in enumerate(screen.conditions) if value in spec.parts])
    return (screen.context if axis == "context" else screen.condition) == value


def agreement(
    screen: Screen,
    left_out: np.ndarray,
    states: Callable[[np.ndarray], Tensor],
    displacement: Callable[[np.ndarray, ConditionSpec], Tensor],
    rule: Callable[[ConditionSpec], np.ndarray],
) -> Iterator[tuple[str, float, float]]:
    """For each left-out (condition, context): its kind, how far the flow's mean displacement points along what the rule missed, its square.

    Parameters
    ----------
    states
        Rows -> states (n x S).
    displacement
        (control rows, condition) -> what a flow fitted without the left-out cells moves these controls by (n x S).
    rule
        Condition -> shift (S) of a rule fitted without them.
    """
    kept = ~left_out
    measured = frozenset(screen.conditions[code] for code in np.unique(screen.condition[kept]))
    met = set(np.unique(screen.context[kept & ~screen.is_control]))
    for code, context in sorted(set(zip(screen.condition[left_out].tolist(), screen.context[left_out].tolist(), strict=True))):
        spec = screen.conditions[code]
        target = np.flatnonzero(left_out & (screen.condition == code) & (screen.context == context))
        control = np.flatnonzero(screen.is_control & (screen.context == context))
        missed = (states(target).mean(0) - states(control).mean(0)).numpy() - rule(spec)
        moved = displacement(control, spec).mean(0).numpy()
        kind = "context" if context not in met else kind_of(spec, measured)
        yield kind, float((missed * moved).sum()), float((moved * moved).sum())


def learn_weights(units: list[tuple[str, float, float]]) -> dict[str, float]:
    """The weight in [0, 1] that minimises the squared error of the mean state over the units of each kind.

    It is shrunk towards the rule by its own uncertainty (positive-part James-Stein on the spread between units), so that a few
    units that disagree say nothing. Kinds with fewer than two units are left out.
    """
    learnt = {}
    for kind in sorted({kind for kind, _, _ in units}):
        along = np.array([product for k, product, _ in units if k == kind])
        square = np.array([value for k, _, value in units if k == kind])
        if len(along) < 2 or square.sum() <= 0:
            continue
        weight = along.sum() / square.sum()
        error = np.sqrt(((along - weight * square) ** 2).sum() * len(along) / (len(along) - 1)) / square.sum()
        trust = max(0.0, 1.0 - (error / weight) ** 2) if weight > 0 else 0.0
        learnt[kind] = min(max(0.0, float(trust * weight)), 1.0)
    return learnt
