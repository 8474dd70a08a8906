"""Mean effects, and the additive rule: exact where it must be."""

import numpy as np
import pytest

from counterflow.effects.additive import AdditiveRule, MeanEffects, mean_effects
from counterflow.errors import DataError
from counterflow.types import ConditionSpec


def spec(*parts, dose=1.0, time=0.0):
    return ConditionSpec(parts, (dose,) * len(parts), time)


def rule(**effects):
    """A rule from effects of conditions written as A, A_B, ..."""
    specs = tuple(spec(*name.split("_")) for name in effects)
    return AdditiveRule.fit(MeanEffects(specs, np.array(list(effects.values()), dtype=float)))


def test_mean_effects_average_matched_contexts_with_equal_weight():
    specs = (spec(), spec("A"), spec("B"))
    condition = np.array([0, 0, 1, 1, 1, 0, 1, 2])
    context = np.array([0, 0, 0, 0, 0, 1, 1, 2])  # B is in a context without controls
    values = np.array([[1.0], [3.0], [5.0], [6.0], [7.0], [10.0], [20.0], [99.0]])
    measured = mean_effects(lambda rows: values[rows], specs, condition, context)
    assert measured.specs == (spec("A"),)
    assert measured.effect.tolist() == [[((6 - 2) + (20 - 10)) / 2]]


def test_nothing_to_compare_is_an_error():
    with pytest.raises(DataError, match="drop a key from match_keys"):
        mean_effects(lambda rows: np.zeros((len(rows), 1)), (spec(), spec("A")), np.array([0, 1]), np.array([0, 1]))


def test_parts_add_up():
    adds = rule(A=[1, 0], B=[0, 2], C=[5, 5])
    assert adds(spec("A", "B")).tolist() == [1, 2]
    assert adds(spec("A", "A")).tolist() == [2, 0]
    assert adds(spec("A", "B", "C")).tolist() == [6, 7]
    assert adds(spec()).tolist() == [0, 0]


def test_a_measured_single_keeps_its_effect_whatever_its_combinations_say():
    assert rule(A=[1], B=[2], A_B=[100])(spec("A")).tolist() == [1]


def test_an_unmeasured_part_has_the_mean_effect():
    assert rule(A=[1, 0], B=[0, 2])(spec("X")).tolist() == [0.5, 1]
    assert rule(A=[1, 0], B=[0, 2])(spec("A", "X")).tolist() == [1.5, 1]


def test_parts_met_only_in_combinations_get_what_their_partners_leave():
    adds = rule(A=[1], A_X=[4], B=[2], B_X=[5])
    assert adds(spec("X")) == pytest.approx([3])
    assert rule(A_B=[4], C=[0])(spec("A")) == pytest.approx([2])  # cannot be told apart: an equal share


def curve(levels):
    """A rule for one part measured at (dose, time) levels."""
    specs = tuple(spec("A", dose=dose, time=time) for dose, time in levels)
    return AdditiveRule.fit(MeanEffects(specs, np.array([[float(value)] for value in levels.values()])))


def test_doses_are_interpolated_on_a_log_scale_from_zero():
    of_dose = curve({(1.0, 0.0): 1.0, (7.0, 0.0): 3.0})
    assert of_dose(spec("A", dose=1.0)) == [1.0] and of_dose(spec("A", dose=7.0)) == [3.0]
    assert of_dose(spec("A", dose=3.0)) == pytest.approx([2.0])  # log1p: 1 -> log 2, 3 -> log 4, 7 -> log 8
    assert of_dose(spec("A", dose=np.sqrt(2) - 1)) == pytest.approx([0.5])
    assert of_dose(spec("A", dose=0.0)) == [0.0]
    assert of_dose(spec("A", dose=100.0)) == [3.0]  # the last level holds


def test_times_are_interpolated_from_zero():
    of_time = curve({(1.0, 2.0): 4.0, (1.0, 6.0): 8.0})
    values = [float(of_time(spec("A", time=time))[0]) for time in (0.0, 1.0, 2.0, 4.0, 6.0, 60.0)]
    assert values == pytest.approx([0, 2, 4, 6, 8, 8])


def test_dose_and_time_together():
    both = curve({(1.0, 2.0): 4.0, (1.0, 6.0): 8.0, (3.0, 2.0): 6.0, (3.0, 6.0): 20.0})
    assert both(spec("A", dose=3.0, time=4.0)) == pytest.approx([13.0])
    assert both(spec("A", dose=0.0, time=6.0)) == [0.0] and both(spec("A", dose=3.0, time=0.0)) == [0.0]
