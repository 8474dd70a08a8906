"""Parts known better from the combinations they are in."""

import numpy as np
import pytest

from counterflow.effects.pooling import PooledParts, parts_of
from counterflow.types import ConditionSpec

FEATURES, NAMES = 200, "ABCDEFGH"


def spec(*parts, time=0.0):
    return ConditionSpec(parts, (1.0,) * len(parts), time)


def additive(rng, noise):
    """Eight parts, all their pairs but A + H, and what is measured of them."""
    truth = rng.normal(size=(len(NAMES), FEATURES))
    specs = [spec(name) for name in NAMES] + [spec(a, b) for a in NAMES for b in NAMES if a < b and (a, b) != ("A", "H")]
    effects = np.array([truth[[NAMES.index(p) for p in s.parts]].sum(0) for s in specs])
    return truth, specs, effects + rng.normal(0, np.sqrt(noise), effects.shape), np.full(len(specs), noise)


def test_a_pair_is_known_better_from_pairs_than_from_its_parts_alone():
    truth, specs, effects, noise = additive(np.random.default_rng(0), 1.0)
    pooled = PooledParts.fit(specs, effects, noise)
    wanted = truth[0] + truth[7]
    alone = effects[0] + effects[7]
    assert ((pooled(spec("A", "H")) - wanted) ** 2).mean() < 0.5 * ((alone - wanted) ** 2).mean()


def test_without_noise_and_interactions_parts_are_as_measured():
    truth, specs, effects, noise = additive(np.random.default_rng(0), 1e-8)
    assert PooledParts.fit(specs, effects, noise)(spec("A", "H")) == pytest.approx(truth[0] + truth[7], abs=1e-3)


def test_where_combinations_go_their_own_way_parts_are_as_measured_alone():
    """Interactions as large as the parts, singles without noise: pairs have nothing to say about the parts."""
    rng = np.random.default_rng(0)
    truth, specs, effects, noise = additive(rng, 1e-6)
    effects[len(NAMES) :] += rng.normal(0, 3, effects[len(NAMES) :].shape)
    assert PooledParts.fit(specs, effects, noise)(spec("A", "H")) == pytest.approx(truth[0] + truth[7], abs=0.02)


def test_a_part_in_no_combination_is_its_own_measurement_shrunk():
    truth, specs, effects, noise = additive(np.random.default_rng(0), 0.5)
    specs, effects, noise = [*specs, spec("Z")], np.vstack([effects, truth[:1]]), np.append(noise, 0.5)
    found = PooledParts.fit(specs, effects, noise)(spec("Z"))
    assert found == pytest.approx(truth[0] * (found @ truth[0]) / (truth[0] @ truth[0]))
    assert 0.5 < (found @ truth[0]) / (truth[0] @ truth[0]) < 0.8  # 1 / (1 + .5)


def test_another_time_is_another_part():
    _, specs, effects, noise = additive(np.random.default_rng(0), 0.1)
    pooled = PooledParts.fit(specs, effects, noise)
    assert spec("A", "H") in pooled
    assert spec("A", "H", time=3.0) not in pooled
    assert parts_of(spec("A", "B", time=3.0)) == [spec("A", time=3.0), spec("B", time=3.0)]
