"""How far to trust the flow beyond the rule, per kind of generalisation: learnt on left-out training conditions.

Two numbers. ``mean``: the population goes to ``rule + mean * (flow - rule)``. Where the data carry nothing more than the rule (few noisy
cells per condition) the flow's part is noise and it goes to 0. ``spread``: what share of the differences between the flow's cells is
kept around that mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterflow.data.screen import Screen
from counterflow.effects.kinds import kind_of
from counterflow.effects.kriging import KrigedRule
from counterflow.effects.moments import pairs_of
from counterflow.recentring import Trust
from counterflow.types import ConditionSpec

_FOLDS, _OF = 2, 3  # conditions are dealt into three parts; two of them are left out, one after the other
_FEWEST = 3  # eligible conditions of a kind
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the spread
_COMPARED = 256  # cells
MOST_CELLS = 16384  # of a condition or the controls of a context, whose mean is taken
MOST_JUDGED = 64  # conditions and contexts of a fit, evenly chosen: enough to tell a weight


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
        left_out = mask & ~screen.is_control
        if (~left_out & ~screen.is_control & np.isin(screen.context, screen.context[screen.is_control])).any():
            yield left_out


def _cells(screen: Screen, axis: str, value: int | str) -> np.ndarray:
    if axis == "part":
        return np.isin(screen.condition, [code for code, spec in enumerate(screen.conditions) if value in spec.parts])
    return (screen.context if axis == "context" else screen.condition) == value


@dataclass(frozen=True)
class Judged:
    """The flow on one left-out (condition, context)."""

    kind: str
    along: float  # how far it points along what the rule missed
    square: float  # its squared length beyond the rule
    distance: tuple[float, ...]  # energy distance to the real cells for each of `SHARES`, means put aside


def judge(
    screen: Screen,
    judged: np.ndarray,
    states: Callable[[np.ndarray], Tensor],
    displacement: Callable[[np.ndarray, ConditionSpec], Tensor],
    rule: KrigedRule,
) -> Iterator[Judged]:
    """Each (condition, context) of the `judged` cells, by a flow and a rule that were fitted without them.

    Judging all perturbed cells by what was fitted on them (kind ``seen``) tells how the flow spreads them; no mean is learnt from that.

    Parameters
    ----------
    states
        Rows -> states (n x S).
    displacement
        (control rows, condition) -> what the flow moves these controls by (n x S).
    """
    kept = ~judged
    everything = not (kept & ~screen.is_control).any()
    measured = frozenset(screen.conditions[code] for code in np.unique(screen.condition[kept]))
    met = set(np.unique(screen.context[kept & ~screen.is_control]))
    units = pairs_of(screen.condition[judged], screen.context[judged])
    for code, context in (units[i] for i in np.unique(np.linspace(0, len(units) - 1, min(MOST_JUDGED, len(units))).astype(int))):
        spec = screen.conditions[code]
        target = states(_some(np.flatnonzero(judged & (screen.condition == code) & (screen.context == context)), MOST_CELLS))
        controls = _some(np.flatnonzero(screen.is_control & (screen.context == context)), MOST_CELLS)
        if min(len(target), len(controls)) < 2:
            continue
        here = states(controls).double().mean(0).numpy()
        control_rows = _some(controls, _COMPARED)
        control = states(control_rows)
        moved = displacement(control_rows, spec)
        by_rule = rule.effect(spec, screen.contexts[context], here)
        missed = target.double().mean(0).numpy() - here - by_rule
        beyond = rule.anchor(spec) + moved.double().mean(0).numpy() - by_rule
        around = moved - moved.mean(0)
        centred = control - control.mean(0), target - target.mean(0)
        distance = tuple(_energy(centred[0] + share * around, centred[1]) for share in SHARES)
        kind = "seen" if everything else "context" if context not in met or spec in measured else kind_of(spec, measured)
        yield Judged(kind, float(missed @ beyond), float(beyond @ beyond), distance)


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many, evenly chosen."""
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)] if len(rows) > most else rows


def _energy(a: Tensor, b: Tensor) -> float:
    """Energy distance (Euclidean) of two clouds, up to a constant of `b`."""
    a, b = a[:_COMPARED], b[:_COMPARED]
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).sum() / max(len(a) * (len(a) - 1), 1))


def learn_trust(units: list[Judged]) -> dict[str, Trust]:
    """Per kind: the mean's weight in [0, 1] that minimises the squared error of the mean state, and the best share of the spread.

    The weight is shrunk towards the rule by its own uncertainty (positive-part James-Stein on the spread between units), so that a few
    units that disagree say nothing. Kinds with fewer than two units are left out. What was measured keeps its measured mean.
    """
    learnt = {}
    for kind in sorted({unit.kind for unit in units}):
        some = [unit for unit in units if unit.kind == kind]
        along, square = np.array([unit.along for unit in some]), np.array([unit.square for unit in some])
        best = SHARES[int(np.argmin(np.mean([unit.distance for unit in some], 0)))]
        if kind == "seen":
            learnt[kind] = Trust(0.0, best, len(some))
            continue
        if len(along) < 2 or square.sum() <= 0:
            continue
        weight = along.sum() / square.sum()
        error = np.sqrt(((along - weight * square) ** 2).sum() * len(along) / (len(along) - 1)) / square.sum()
        certain = max(0.0, 1.0 - (error / weight) ** 2) if weight > 0 else 0.0
        learnt[kind] = Trust(min(max(0.0, float(certain * weight)), 1.0), best, len(some))
    return learnt
