"""Two estimators of combinations, mixed by how they did on combinations left out."""

import numpy as np

from counterflow.effects import combinations
from counterflow.effects.combinations import Combinations
from counterflow.types import ConditionSpec

FEATURES, NAMES, HIDDEN = 200, "ABCDEFGHIJ", 12


def spec(*parts):
    return ConditionSpec(parts, (1.0,) * len(parts), 0.0)


def screen(rng, interaction, noise):
    """Parts, pairs (the first `HIDDEN` are hidden), what is measured of all, and the truth."""
    low = rng.normal(size=(len(NAMES), 3))
    parts = low @ rng.normal(0, 0.6, (3, FEATURES))
    into = rng.normal(size=(3, FEATURES))
    pairs = [(a, b) for a in range(len(NAMES)) for b in range(a + 1, len(NAMES))]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    truth = np.array([parts[a] + parts[b] + interaction * (low[a] * low[b]) @ into for a, b in pairs])
    specs = [spec(name) for name in NAMES] + [spec(NAMES[a], NAMES[b]) for a, b in pairs]
    effects = np.vstack([parts, truth])
    measured = effects + rng.normal(0, np.sqrt(noise), effects.shape)
    return specs, measured, truth[:HIDDEN], np.full(len(specs), noise)


def fitted(specs, measured, noise):
    kept = np.r_[0 : len(NAMES), len(NAMES) + HIDDEN : len(specs)]
    parts = {specs[i]: (measured[i], float(noise[i])) for i in range(len(NAMES))}
    return Combinations.fit(parts, [specs[i] for i in kept], measured[kept], noise[kept])


def errors(fit, specs, measured, truth):
    """Of the mixture and of the interactions alone."""
    both = np.zeros(2)
    for s, t in zip(specs[len(NAMES) : len(NAMES) + HIDDEN], truth, strict=True):
        alone = measured[[NAMES.index(p) for p in s.parts]]
        both += ((fit(s, alone.sum(0), alone) - t) ** 2).sum(), ((fit.interactions(alone.sum(0), alone) - t) ** 2).sum()
    return both


def test_noisy_parts_that_add_up_are_pooled():
    specs, measured, truth, noise = screen(np.random.default_rng(0), 0.0, 1.0)
    fit = fitted(specs, measured, noise)
    assert fit.weight > 0.5
    mixed, alone = errors(fit, specs, measured, truth)
    assert mixed < 0.7 * alone


def test_parts_that_interact_are_left_to_the_interactions():
    specs, measured, truth, noise = screen(np.random.default_rng(0), 1.0, 0.02)
    fit = fitted(specs, measured, noise)
    assert fit.weight < 0.1
    mixed, alone = errors(fit, specs, measured, truth)
    assert mixed < 1.02 * alone


def test_without_combinations_there_is_the_sum():
    specs, measured, _, noise = screen(np.random.default_rng(0), 0.0, 1.0)
    n = len(NAMES)
    fit = Combinations.fit({s: (e, 1.0) for s, e in zip(specs[:n], measured[:n], strict=True)}, specs[:n], measured[:n], noise[:n])
    assert fit.weight == 0
    assert np.array_equal(fit(spec("A", "B"), measured[0] + measured[1], measured[:2]), measured[0] + measured[1])


def test_the_context_that_is_asked_for_stays():
    """What is pooled is a mean over contexts: the sum of the parts here, beyond that of everywhere, is kept."""
    specs, measured, _, noise = screen(np.random.default_rng(0), 0.0, 1.0)
    fit = fitted(specs, measured, noise)
    here = np.linspace(-1, 1, FEATURES)
    alone = measured[:2]
    moved = fit(spec("A", "B"), alone.sum(0) + here, alone) - fit(spec("A", "B"), alone.sum(0), alone)
    assert np.allclose(moved, fit.interactions.factor * here)


def test_both_estimators_are_judged_on_what_neither_has_seen(monkeypatch):
    """Another effect of a pair changes what was missed of it by as much, and neither prediction."""
    seen = []
    monkeypatch.setattr(combinations, "learnt_weight", lambda missed, beyond: seen.append((missed, beyond)) or 0.0)
    specs, measured, _, noise = screen(np.random.default_rng(0), 0.5, 0.1)
    few = np.r_[0 : len(NAMES), len(NAMES) : len(NAMES) + 6]
    parts = {specs[i]: (measured[i], 0.1) for i in range(len(NAMES))}
    other = measured.copy()
    other[len(NAMES) + 2] += 5.0
    for effects in (measured, other):
        Combinations.fit(parts, [specs[i] for i in few], effects[few], noise[few])
    (missed, beyond), (missed_other, beyond_other) = seen
    assert len(missed) == 6
    assert np.allclose(missed_other[2] - missed[2], 5.0)
    assert np.allclose(beyond_other[2], beyond[2])
    assert not np.allclose(beyond_other[3], beyond[3])
