"""Left-out effects are really left out, for every kind of generalisation that the measured ones allow."""

from dataclasses import replace

import numpy as np
import pytest

from counterflow.effects.kriging import MeasuredEffects
from counterflow.effects.leaving_out import halves, leave_out
from counterflow.types import ConditionSpec

GENES = 30


def spec(*parts, dose=1.0):
    return ConditionSpec(parts, (dose,) * len(parts), 0.0)


def measured(specs, n_levels=1, seed=0):
    rng = np.random.default_rng(seed)
    units = [(s, c) for s in range(len(specs)) for c in range(n_levels)]
    return MeasuredEffects(
        tuple(specs),
        tuple((f"c{c}",) for c in range(n_levels)),
        np.array([s for s, _ in units]),
        np.array([c for _, c in units]),
        rng.normal(size=(len(units), GENES)).astype(np.float32),
        np.full((len(units), GENES), 0.01, dtype=np.float32),
        rng.normal(3, 1, (n_levels, GENES)).astype(np.float32),
    )


SCREENS = {
    "combination": ([spec("A"), spec("B"), spec("C"), spec("A", "B"), spec("B", "C")], 1, {"combination", "unknown"}),
    "part": ([spec("A"), spec("C"), spec("A", "B"), spec("B", "C")], 1, {"part", "unknown"}),
    "level": ([spec("A"), spec("A", dose=2.0), spec("B")], 1, {"level", "unknown"}),
    "context": ([spec("A"), spec("B")], 3, {"context", "unknown"}),
    "one perturbation, one context": ([spec("A")], 1, set()),
}


@pytest.mark.parametrize("name", SCREENS)
def test_each_kind_that_the_screen_allows_has_its_turn(name):
    specs, levels, kinds = SCREENS[name]
    assert {one.kind for one in leave_out(measured(specs, levels))} == kinds


@pytest.mark.parametrize("name", ["combination", "part", "level", "context"])
def test_the_effect_itself_has_no_part_in_its_prediction(name):
    specs, levels, _ = SCREENS[name]
    table = measured(specs, levels)
    before = list(leave_out(table))
    moved = 0
    for unit in range(len(table.spec_of)):
        effect = table.effect.copy()
        effect[unit] += 5.0
        for one, other in zip(before, leave_out(replace(table, effect=effect)), strict=True):
            if not np.array_equal(one.measured, other.measured):  # the changed one
                assert np.array_equal(one.predicted, other.predicted) and np.array_equal(one.prior, other.prior)
                moved += 1
    assert moved == len(before)


def test_a_part_is_left_out_with_every_combination_that_holds_it():
    table = measured([spec("A"), spec("B"), spec("C"), spec("A", "B")])
    changed = table.effect.copy()
    changed[3] += 5.0  # A+B tells something about A
    before, after = (
        {(one.kind, one.group): one.predicted for one in leave_out(replace(table, effect=effect))} for effect in (table.effect, changed)
    )
    assert np.array_equal(before["unknown", "A"], after["unknown", "A"])


def test_halves_predict_each_other():
    first, second = measured([spec("A"), spec("B")], seed=0), measured([spec("A"), spec("B")], seed=1)
    found = list(halves(first, second))
    assert [one.kind for one in found] == ["seen", "seen"]
    for i, one in enumerate(found):
        assert np.allclose(one.measured, second.effect[i]) and np.allclose(one.noise, 0.02)
        assert np.corrcoef(one.predicted, first.effect[i])[0, 1] > 0.99


def test_many_conditions_have_their_turn_evenly_chosen(monkeypatch):
    import counterflow.effects.leaving_out as module

    monkeypatch.setattr(module, "MOST_LEFT_OUT", 5)
    found = list(leave_out(measured([spec(f"P{i:02}") for i in range(20)])))
    assert [one.group for one in found] == ["P00", "P04", "P09", "P14", "P19"]
