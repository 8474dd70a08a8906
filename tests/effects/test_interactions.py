"""Combinations beyond the sum of their parts."""

import numpy as np
import pytest

from counterflow.effects.interactions import Interactions

PARTS, FEATURES, NOISE = 10, 300, 0.02


def screen(rng, beyond):
    """Parts, all pairs of them, and their effects: `beyond` (sum, a, b) -> effect; noise is added."""
    parts = rng.normal(0, 1, (PARTS, 4)) @ rng.normal(0, 0.5, (4, FEATURES))
    pairs = [(a, b) for a in range(PARTS) for b in range(a + 1, PARTS)]
    truth = np.array([beyond(parts[a] + parts[b], a, b) for a, b in pairs])
    order = rng.permutation(len(pairs))
    return parts, [pairs[i] for i in order], truth[order], truth[order] + rng.normal(0, np.sqrt(NOISE), truth.shape)


def fitted(parts, pairs, effects, n=25):
    return Interactions.fit(parts, pairs[:n], effects[:n], np.full(n, NOISE))


def squared(fit, parts, pairs, truth, n=25):
    mine = sum(((fit(parts[list(p)].sum(0), parts[list(p)]) - t) ** 2).sum() for p, t in zip(pairs[n:], truth[n:], strict=True))
    plain = sum(((parts[list(p)].sum(0) - t) ** 2).sum() for p, t in zip(pairs[n:], truth[n:], strict=True))
    return mine, plain


def test_where_parts_add_up_the_sum_stays():
    rng = np.random.default_rng(0)
    parts, pairs, truth, effects = screen(rng, lambda total, a, b: total)
    mine, plain = squared(fitted(parts, pairs, effects), parts, pairs, truth)
    assert plain == 0
    assert mine < 0.02 * (truth[25:] ** 2).sum()


def test_sub_additive_combinations_are_scaled():
    rng = np.random.default_rng(0)
    parts, pairs, truth, effects = screen(rng, lambda total, a, b: 0.6 * total)
    fit = fitted(parts, pairs, effects)
    assert fit.factor == pytest.approx(0.6, abs=0.03)
    mine, plain = squared(fit, parts, pairs, truth)
    assert mine < 0.05 * plain


def test_what_similar_pairs_did_is_carried_over():
    """An interaction that is a product of the parts' positions: a factor for all cannot know it, pairs alike can."""
    rng = np.random.default_rng(0)
    where, into = rng.normal(size=(PARTS, 2)), rng.normal(size=FEATURES)
    embed = rng.normal(0, 0.7, (2, FEATURES))

    parts = where @ embed
    pairs = [(a, b) for a in range(PARTS) for b in range(a + 1, PARTS)]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    truth = np.array([parts[a] + parts[b] + 2 * (where[a] @ where[b]) * into for a, b in pairs])
    effects = truth + rng.normal(0, np.sqrt(NOISE), truth.shape)
    fit = fitted(parts, pairs, effects)
    mine, plain = squared(fit, parts, pairs, truth)
    only_scaled = sum(((fit.factor * parts[list(p)].sum(0) - t) ** 2).sum() for p, t in zip(pairs[25:], truth[25:], strict=True))
    assert mine < 0.3 * min(plain, only_scaled)


def test_the_order_of_the_parts_says_nothing_and_three_parts_are_taken():
    rng = np.random.default_rng(0)
    parts, pairs, _, effects = screen(rng, lambda total, a, b: 0.7 * total + a * b / 10)
    fit = fitted(parts, pairs, effects)
    total = parts[0] + parts[3]
    assert fit(total, parts[[0, 3]]) == pytest.approx(fit(total, parts[[3, 0]]))
    assert np.isfinite(fit(parts[[0, 3, 5]].sum(0), parts[[0, 3, 5]])).all()


def test_with_fewer_than_three_combinations_nothing_is_learnt():
    rng = np.random.default_rng(0)
    parts, pairs, _, effects = screen(rng, lambda total, a, b: 0.1 * total)
    fit = fitted(parts, pairs, effects, n=2)
    assert np.array_equal(fit(parts[0] + parts[1], parts[:2]), parts[0] + parts[1])
