import numpy as np
import pytest

from counterflow.evaluate.metrics.ranks import centroid_acc, pds_cosine, pds_l1, pds_l2, rank_perturbench

PDS = [pds_l1, pds_l2, pds_cosine]


@pytest.fixture
def effects():
    rng = np.random.default_rng(0)
    return rng.lognormal(0, 0.7, (14, 1)) * rng.normal(size=(14, 60))


@pytest.mark.parametrize("pds", [*PDS, centroid_acc])
def test_truth_is_one_and_a_generic_response_a_half_exactly(effects, pds):
    assert (pds(effects, effects) == 1).all()
    generic = np.repeat(effects.mean(0, keepdims=True), 14, 0)
    assert pds(generic, effects).mean() == pytest.approx(0.5, abs=1e-12)
    assert (pds(0 * effects, effects).mean()) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("pds", PDS)
def test_shuffled_labels_score_a_half(effects, pds):
    rng = np.random.default_rng(0)
    scores = [pds(effects[rng.permutation(14)], effects).mean() for _ in range(200)]
    assert abs(np.mean(scores) - 0.5) < 0.03


def test_l1_and_l2_reward_blown_up_effects_and_the_cosine_does_not(effects):
    noisy = effects + np.random.default_rng(1).normal(size=effects.shape)
    for pds in (pds_l1, pds_l2):
        assert pds(0.1 * noisy, effects).mean() + 0.1 < pds(3 * noisy, effects).mean()
    assert np.array_equal(pds_cosine(0.1 * noisy, effects), pds_cosine(3 * noisy, effects))


def test_a_leave_one_out_mean_is_punished_for_leaving_out():
    effects = np.random.default_rng(0).normal(size=(14, 60))
    left_out = (effects.sum(0) - effects) / 13
    assert pds_cosine(left_out, effects).mean() < 0.25


def test_ties_count_half_and_zero_vectors_have_cosine_distance_one(effects):
    real = effects.copy()
    real[3] = real[7]
    score = pds_l2(real, real)
    assert score[3] == score[7] == 1 - 0.5 / 13
    assert pds_cosine(0 * effects, effects).tolist() == [0.5] * 14


def test_the_perturbed_gene_can_be_left_out():
    """Knowing only which gene is knocked out is perfect discrimination, and none without that gene."""
    rng = np.random.default_rng(0)
    real = 0.1 * rng.normal(size=(20, 60))
    real[np.arange(20), np.arange(20)] = -5
    told = np.zeros((20, 60))
    told[np.arange(20), np.arange(20)] = -5
    assert pds_l2(told, real).mean() == 1
    for pds in PDS:
        assert abs(pds(told, real, leave_out=np.arange(20)).mean() - 0.5) < 0.15


@pytest.mark.parametrize("pds", PDS)
def test_leaving_out_nothing_or_a_gene_without_effect_changes_nothing(effects, pds):
    noisy = effects + np.random.default_rng(1).normal(size=effects.shape)
    expected = pds(noisy, effects)
    assert np.array_equal(pds(noisy, effects, leave_out=np.full(14, -1)), expected)
    padded = [np.c_[x, np.zeros((14, 1))] for x in (noisy, effects)]
    assert np.array_equal(pds(*padded, leave_out=np.full(14, 60)), expected)


def test_rank_perturbench_compares_with_other_predictions(effects):
    assert (rank_perturbench(effects, effects) == 0).all()
    rng = np.random.default_rng(0)
    assert abs(np.mean([rank_perturbench(effects[rng.permutation(14)], effects).mean() for _ in range(200)]) - 0.5) < 0.05
    assert (rank_perturbench(np.ones((14, 60)), effects) == 1).all()  # ties count as worse


@pytest.mark.parametrize("metric", [*PDS, centroid_acc, rank_perturbench])
def test_fewer_than_five_conditions_are_not_ranked(effects, metric):
    assert np.isnan(metric(effects[:4], effects[:4])).all()
    assert np.isfinite(metric(effects[:5], effects[:5])).all()
