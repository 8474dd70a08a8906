"""Intervals hold what they promise on new effects, whatever the shape of the errors; and say so where they know nothing."""

from dataclasses import replace

import numpy as np
import pytest

from counterflow.effects.intervals import GRID, Certainty, Intervals, _certainty
from counterflow.effects.kriging import MeasuredEffects
from counterflow.effects.leaving_out import LeftOut
from counterflow.types import ConditionSpec

GENES = 400


def effects(n, seed, *, kind="combination", heavy=False, scale=0.3):
    """Predictions that miss by their noise and by a part that grows with the root of the effect, all of a condition by its own factor."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        predicted = rng.normal(size=GENES) * rng.choice([0.02, 0.2, 1.0], GENES)
        noise, prior = rng.uniform(0.001, 0.02, GENES), np.full(GENES, 0.1)
        error = rng.standard_t(3, GENES) / np.sqrt(3) if heavy else rng.normal(size=GENES)
        missed = error * np.sqrt(noise + scale * np.abs(predicted) * 0.2) * rng.uniform(0.7, 1.3)
        zero = np.zeros(GENES)
        yield LeftOut(kind, i, predicted + missed, noise, predicted, prior, (zero, zero, predicted + 0.5 * missed))


def intervals(left_out):
    table = MeasuredEffects(
        (ConditionSpec(("A",), (1.0,), 0.0),), ((),), np.array([0]), np.array([0]),
        np.full((1, GENES), 0.33, dtype=np.float32), np.full((1, GENES), 0.009, dtype=np.float32), np.zeros((1, GENES), dtype=np.float32),
    )  # fmt: skip
    return Intervals.learn(table, np.array([100.0]), np.array([200.0]), left_out)


def covered(learnt, level, some):
    inside, width = [], []
    for one in some:
        certainty = learnt.certainty(one.kind)
        half = certainty.reach(level)[learnt.strata(one.predicted)] * learnt.spread(certainty, one.predicted, one.noise)
        inside.append(np.abs(one.measured - one.predicted) <= half)
        width.append(half)
    return np.array(inside), np.array(width)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_new_effects_are_inside_as_often_as_promised(heavy, level):
    learnt = intervals(effects(40, 0, heavy=heavy))
    inside, _ = covered(learnt, level, effects(40, 1, heavy=heavy))
    assert inside.mean() == pytest.approx(level, abs=0.035)


def test_large_effects_have_wide_intervals_and_are_covered_like_small_ones():
    learnt = intervals(effects(40, 0))
    some = list(effects(40, 1))
    inside, width = covered(learnt, 0.9, some)
    large = np.abs([one.predicted for one in some]) > 0.5
    assert width[large].mean() > 2 * width[~large].mean()
    assert inside[large].mean() == pytest.approx(0.9, abs=0.05)
    assert (np.abs([one.predicted for one in some]) > width)[large].mean() > 0.8  # and say that they are there


def test_few_left_out_conditions_make_wide_intervals():
    many, few = intervals(effects(40, 0)), intervals(effects(2, 0))
    some = list(effects(20, 1))
    assert covered(few, 0.9, some)[1].mean() > 1.3 * covered(many, 0.9, some)[1].mean()
    assert covered(few, 0.9, some)[0].mean() > 0.9


def test_one_left_out_condition_tells_nothing():
    assert _certainty(list(effects(1, 0))) is None
    assert intervals(effects(1, 0)).certainty("combination") is None


def test_where_a_kind_is_missing_a_harder_one_is_taken_and_never_an_easier_one():
    learnt = intervals([*effects(4, 0, kind="unknown"), *effects(4, 1, kind="seen")])
    assert learnt.certainty("part") is learnt.kinds["unknown"] and learnt.certainty("feature") is learnt.kinds["unknown"]
    assert learnt.certainty("context") is None
    assert intervals(effects(4, 1, kind="seen")).certainty("combination") is None


def test_the_simple_rule_with_the_smallest_errors_is_the_one_to_beat():
    assert intervals(effects(4, 0)).kinds["combination"].baseline == "sum of parts"


def test_more_cells_make_less_noise_and_what_was_measured_was_noisy_too():
    learnt = intervals(effects(4, 0))
    one = np.ones(GENES)
    usual, many, never = (learnt.noise("combination", one, one, cells, 10**9) for cells in (None, 10_000, float("inf")))
    assert (usual > many).all() and (many > 0).all() and never == pytest.approx(0, abs=1e-8)
    assert learnt.noise("seen", one, one, float("inf"), 10**9) == pytest.approx(usual)
    assert learnt.noise("combination", one, one, 100, 10**9) == pytest.approx(usual)  # the training screen has 100 cells of a condition
    assert (learnt.noise("combination", one, one, None, 256) > usual).all()


def test_they_survive_being_saved():
    learnt = intervals(effects(6, 0))
    described, arrays = learnt.to_parts()
    again = Intervals.from_parts(described, arrays)
    assert again.kinds == learnt.kinds and np.array_equal(again.prior, learnt.prior) and again.cells == learnt.cells
    described["kinds"]["combination"]["quantiles"][1].pop()
    with pytest.raises(ValueError, match=f"{len(GRID)} quantiles"):
        Intervals.from_parts(described, arrays)


def test_more_coverage_is_never_narrower():
    some = Certainty((1.0,) * 9, (tuple(np.sqrt(GRID)), tuple(GRID)), 5, "no change")
    reach = np.array([some.reach(level) for level in (0.1, 0.5, 0.9, 0.99)])
    assert (np.diff(reach, axis=0) > 0).all() and (reach[:, 0] > reach[:, 1]).all()


def test_the_few_genes_that_move_are_covered_like_the_many_that_do_not():
    """A rule that knows nothing of which way they move: only how much perturbations move a gene tells that its interval is wide."""

    def unknown(n, seed):
        rng = np.random.default_rng(seed)
        prior = np.where(np.arange(GENES) < GENES // 20, 1.0, 1e-4)
        for i in range(n):
            noise, zero = np.full(GENES, 0.002), np.zeros(GENES)
            truth = rng.normal(size=GENES) * np.sqrt(prior)
            yield LeftOut("unknown", i, truth + rng.normal(size=GENES) * np.sqrt(noise), noise, zero, prior, (zero, zero, zero))

    learnt = intervals(unknown(30, 0))
    learnt = replace(learnt, prior=next(unknown(1, 0)).prior.astype(np.float32))
    inside, width = covered(learnt, 0.9, unknown(30, 1))
    moving = np.arange(GENES) < GENES // 20
    assert inside[:, moving].mean() == pytest.approx(0.9, abs=0.06) and inside[:, ~moving].mean() == pytest.approx(0.9, abs=0.03)
    assert width[:, moving].mean() > 5 * width[:, ~moving].mean()
