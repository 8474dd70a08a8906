"""Measured effects predicted from the others: each left out in turn, as far as that needs one kind of generalisation or another.

Only the table of measured effects is read, no cell and no network, so that every condition can have its turn.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterflow.effects.kinds import kind_of
from counterflow.effects.kriging import KrigedRule, MeasuredEffects

MOST_LEFT_OUT = 64  # effects of each kind, evenly chosen
MOST_GENES = 2_000  # evenly chosen
MOST_PARTS = 64  # that a mean effect is taken over

SIMPLE = ("no change", "mean effect", "sum of parts")
"""The simple rules that a prediction is held against: the control, one effect for all, and the plain means of what was measured."""


@dataclass(frozen=True)
class LeftOut:
    """One effect (F) that was measured, and predicted without it."""

    kind: str
    group: Hashable  # what was left out: effects of one group are not independent
    measured: NDArray[np.float64]
    noise: NDArray[np.float64]  # variance of the error of `measured`, and of what was known of the same condition
    predicted: NDArray[np.float64]
    prior: NDArray[np.float64]  # variance of true effects, from what was kept
    simple: tuple[NDArray[np.float64], ...]  # in the order of `SIMPLE`


def prior_of(measured: MeasuredEffects) -> NDArray[np.float64]:
    """How much perturbations move each gene (F): the mean squared true effect, a tenth of the way to that of all genes."""
    own = np.maximum(measured.effect.astype(np.float64) ** 2 - measured.noise, 0).mean(0)
    return 0.9 * own + 0.1 * own.mean()


def simple_effects(rule: KrigedRule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of ``no change`` and ``mean effect`` (F)."""
    m = rule.measured
    mean = np.mean([m.effect[m.spec_of == s].astype(np.float64).mean(0) for s in range(len(m.specs))], 0)
    return np.zeros_like(mean), mean


def leave_out(
    measured: MeasuredEffects, floor: float | None = 0.0, *, only: str | None = None, most: int | None = None
) -> Iterator[LeftOut]:
    """Conditions, parts and contexts left out in turn, and what the rule says of them from the rest.

    `only`: one kind of generalisation. `most`: effects of each kind; default `MOST_LEFT_OUT`.
    """
    measured = measured.on(_evenly(np.arange(measured.effect.shape[1]), MOST_GENES))
    turns: dict[str, list[tuple[Hashable, int]]] = {}
    for unit in range(len(measured.spec_of)):
        for kind, group in _turns(measured, unit):
            turns.setdefault(kind, []).append((group, unit))
    for kind, of_kind in turns.items():
        if only not in (None, kind):
            continue
        rules: dict[Hashable, KrigedRule] = {}
        for group, unit in (of_kind[i] for i in _evenly(np.arange(len(of_kind)), most or MOST_LEFT_OUT)):
            if group not in rules:
                rules = {group: KrigedRule(measured.units(_kept(measured, kind, unit)), floor)}
            yield _predicted(measured, unit, kind, group, rules[group])


def halves(first: MeasuredEffects, second: MeasuredEffects, floor: float | None = 0.0) -> Iterator[LeftOut]:
    """What was measured on one half of the cells of each condition, predicted from the other half: kind ``seen``."""
    genes = _evenly(np.arange(first.effect.shape[1]), MOST_GENES)
    first, second = first.on(genes), second.on(genes)
    rule = KrigedRule(first, floor)
    place = {(first.specs[s], first.levels[c]): unit for unit, (s, c) in enumerate(zip(first.spec_of, first.level_of, strict=True))}
    both = [(place[key], unit) for unit in range(len(second.spec_of)) if (key := _key(second, unit)) in place]
    for here, there in (both[i] for i in _evenly(np.arange(len(both)), MOST_LEFT_OUT)):
        spec, level = _key(second, there)
        predicted = rule.effect(spec, level, first.control[first.level_of[here]].astype(np.float64))
        noise = first.noise[here].astype(np.float64) + second.noise[there]
        simple = (*simple_effects(rule), rule.anchor(spec))
        yield LeftOut("seen", (spec, level), second.effect[there].astype(np.float64), noise, predicted, prior_of(first), simple)


def _turns(m: MeasuredEffects, unit: int) -> Iterator[tuple[str, Hashable]]:
    """Kinds of generalisation that an effect can stand for, and what has to be left out for it."""
    spec = m.specs[m.spec_of[unit]]
    if len(spec.parts) > 1:
        kept = frozenset(other for other in m.specs if other != spec)
        kind = kind_of(spec, kept)
        yield (kind if kind != "feature" else "unknown"), spec
    else:
        if any(spec.parts != other.parts for other in m.specs):
            yield "unknown", spec.parts[0]
        if any(other.parts == spec.parts and other != spec for other in m.specs):
            yield "level", spec
    if (m.spec_of == m.spec_of[unit]).sum() > 1:
        yield "context", m.levels[m.level_of[unit]]


def _kept(m: MeasuredEffects, kind: str, unit: int) -> NDArray[np.bool_]:
    spec = m.specs[m.spec_of[unit]]
    if kind == "context":
        return m.level_of != m.level_of[unit]
    if kind == "unknown" and len(spec.parts) == 1:
        others = [s for s, other in enumerate(m.specs) if not set(spec.parts) & set(other.parts)]
        some = set(np.array(others)[_evenly(np.arange(len(others)), MOST_PARTS)].tolist())
        return np.array([s in some for s in m.spec_of.tolist()])
    return m.spec_of != m.spec_of[unit]


def _predicted(m: MeasuredEffects, unit: int, kind: str, group: Hashable, rule: KrigedRule) -> LeftOut:
    spec, level = _key(m, unit)
    control = m.control[m.level_of[unit]].astype(np.float64)
    simple = (*simple_effects(rule), rule.anchor(spec))
    noise = m.noise[unit].astype(np.float64)
    prior = prior_of(rule.measured)
    return LeftOut(kind, group, m.effect[unit].astype(np.float64), noise, rule.effect(spec, level, control), prior, simple)


def _key(m: MeasuredEffects, unit: int) -> tuple:
    return m.specs[m.spec_of[unit]], m.levels[m.level_of[unit]]


def _evenly(items: NDArray, most: int) -> NDArray:
    return items[np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))] if len(items) else items
