"""The effect in the most similar contexts, for the strongest features."""

import numpy as np
import pytest

from counterflow.effects.similarity import similar_mean, strong


def test_the_nearest_contexts_decide():
    effects = np.array([[1.0, 2.0], [1.0, 2.0], [9.0, 9.0]])
    assert similar_mean(np.array([1.0, 1.0, 3.0]), effects) == pytest.approx([1.0, 2.0], abs=0.03)
    assert similar_mean(np.array([1.0, 1.0, 1.0]), effects) == pytest.approx(effects.mean(0))


def test_an_equal_context_is_taken_as_it_is():
    assert similar_mean(np.zeros(2), np.array([[1.0], [3.0]])) == pytest.approx([2.0])
    assert similar_mean(np.array([0.0, 100.0, 100.0]), np.array([[1.0], [3.0], [3.0]])) == pytest.approx([1.0], abs=0.02)


def test_strong_features_are_those_far_beyond_the_others():
    effect = np.r_[np.full(99, 0.1), -3.0]
    assert strong(effect).tolist() == [0] * 99 + [1]
    assert not strong(np.ones(5)).any()
    assert not strong(np.zeros(5)).any()
