"""Measured perturbations that did something similar."""

import numpy as np

from counterflow.effects.kriging import MeasuredEffects
from counterflow.explore.nearest import nearest_measured
from counterflow.types import ConditionSpec


def measured():
    specs = tuple(ConditionSpec((name,), (1.0,), 0.0) for name in ("A", "B", "NONE"))
    effect = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 9], [0, 0, 0, 0]], dtype=np.float32)
    of, at = np.array([0, 1, 0, 2]), np.array([0, 0, 1, 0])
    return MeasuredEffects(specs, (("T",), ("B",)), of, at, effect, np.ones_like(effect), np.ones((2, 4), dtype=np.float32))


def test_the_most_similar_comes_first_and_nothing_is_no_neighbour():
    found = nearest_measured(np.array([1.0, 2.0, 3.0, 4.5]), measured(), ("T",))
    assert [one.spec.parts[0] for one in found] == ["A", "B"] and found[0].r > 0.99 and found[1].r < -0.9
    assert found[0].here and found[0].size == np.sqrt(7.5)


def test_another_context_stands_in_where_it_was_not_measured_in_this_one():
    found = {one.spec.parts[0]: one for one in nearest_measured(np.array([1.0, 2.0, 3.0, 4.0]), measured(), ("NK",))}
    assert not found["A"].here and found["A"].r < 1  # the mean of both contexts
    assert not nearest_measured(np.zeros(4), measured(), ("T",))
