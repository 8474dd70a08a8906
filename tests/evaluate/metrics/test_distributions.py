import numpy as np
import pytest
from scipy.stats import norm

from counterflow.evaluate.metrics.distributions import (
    c2st_gene,
    c2st_pca,
    cover90,
    coverage,
    energy,
    equal_size,
    mmd,
    precision,
    recall,
    sinkhorn,
    std_log2ratio,
    w1_de50,
    w2,
    zero_frac_err,
)


def cloud(n, seed, d=6, mean=0.0, std=1.0):
    return mean + std * np.random.default_rng(seed).normal(size=(n, d))


def tile(cells):
    return np.repeat(cells.mean(0, keepdims=True), len(cells), 0)


def test_energy_of_gaussians():
    """One dimension: E|X - Y| is the mean of a folded normal."""
    folded = lambda m, s: s * np.sqrt(2 / np.pi) * np.exp(-(m**2) / 2 / s**2) + m * (1 - 2 * norm.cdf(-m / s))  # noqa: E731
    exact = 2 * folded(2, np.sqrt(2)) - 2 * folded(0, np.sqrt(2))
    assert energy(cloud(2000, 0, 1, mean=2), cloud(2000, 1, 1)) == pytest.approx(exact, rel=0.05)


def test_energy_is_unbiased_and_may_be_negative():
    values = [energy(cloud(20, 2 * s), cloud(20, 2 * s + 1)) for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


def test_squared_energy_is_the_difference_of_means_and_sees_no_variance():
    x, y = cloud(50, 0, mean=1.0), cloud(70, 1)
    assert energy(x, y, squared=True) == pytest.approx(2 * np.square(x.mean(0) - y.mean(0)).sum())
    assert energy(tile(y), y, squared=True) == pytest.approx(0, abs=1e-9)
    inflated = y.mean(0) + 3 * (y - y.mean(0))
    assert energy(inflated, y, squared=True) == pytest.approx(0, abs=1e-9)
    assert energy(tile(y), y) > 0.5 and energy(inflated, y) > 0.5


@pytest.mark.parametrize("distance", [energy, mmd, w2, sinkhorn])
def test_distances_order_clouds(distance):
    real, other = cloud(80, 0), cloud(80, 1)
    wrong = {"shifted": other + 1, "inflated": 2 * other, "tile": tile(other)}
    for name, cells in wrong.items():
        assert distance(other, real) < distance(cells, real), name
    assert distance(other, real) < 0.6 * distance(other + 1, real)


def test_transport_distances_of_a_translation():
    y = cloud(150, 0)
    shift = np.array([3.0, 4.0, 0, 0, 0, 0])
    assert w2(y + shift, y) == pytest.approx(5)
    assert sinkhorn(y + shift, y) == pytest.approx(25, rel=1e-3)
    assert w2(y, y) == pytest.approx(0, abs=1e-6)
    assert sinkhorn(y, y) == pytest.approx(0, abs=1e-6)


def test_mmd_is_unbiased():
    values = [mmd(cloud(20, 2 * s), cloud(20, 2 * s + 1)) for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_classifiers_cannot_tell_two_halves_but_find_a_shift_and_a_tile():
    a, b = cloud(150, 0, 30), cloud(150, 1, 30)
    assert 0.5 <= c2st_pca(a, b) < 0.62
    assert 0.5 <= c2st_gene(a, b) < 0.62
    assert c2st_pca(a + 1, b) > 0.9
    assert c2st_gene(tile(a), b) > 0.99
    assert np.isnan(c2st_pca(a[:19], b)) and np.isnan(c2st_gene(a, b[:19]))


def test_choosing_genes_does_not_give_two_halves_away():
    halves = [np.log1p(np.random.default_rng(s).poisson(1, (150, 1500))) for s in (0, 1)]
    assert c2st_gene(*halves) < 0.6


def test_a_shift_of_log_expression_destroys_the_zeros():
    """Exactly the right mean, nearly the right cells, and a classifier is certain."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(1, 1, 100)
    real, other = np.log1p(rng.poisson(rate, (120, 100))), np.log1p(rng.poisson(rate, (120, 100)))
    shifted = other + real.mean(0) - other.mean(0)
    assert np.allclose(shifted.mean(0), real.mean(0), atol=1e-8)
    assert c2st_gene(shifted, real) > 0.99
    assert c2st_gene(other, real) < 0.65
    assert zero_frac_err(other + 0.1, real) > 0.3 > 0.1 > zero_frac_err(other, real)


def test_spread_of_the_genes_that_change():
    real = cloud(400, 0, 80)
    abs_t = np.arange(80.0)
    assert std_log2ratio(2 * real, real, abs_t) == pytest.approx(1)
    assert std_log2ratio(tile(real), real, abs_t) < -9
    other = real.copy()
    other[:, :30] *= 100  # not among the 50 that change most
    assert std_log2ratio(other, real, abs_t) == 0
    assert np.isnan(std_log2ratio(real, tile(real), abs_t))


def test_one_dimensional_wasserstein_of_a_shift():
    real = cloud(100, 0, 80)
    shifted = real.copy()
    shifted[:, -50:] += 0.7
    assert w1_de50(shifted, real, np.arange(80.0)) == pytest.approx(0.7)
    assert w1_de50(tile(real), real, np.arange(80.0)) > 0.5


def test_precision_recall_and_coverage_see_different_failures():
    real, other = cloud(300, 0, 4), cloud(300, 1, 4)
    for metric in (precision, recall, coverage):
        assert metric(other, real) > 0.85
        assert metric(other + 50, real) == 0
    assert recall(tile(other), real) < 0.05 < 0.9 < precision(tile(other), real)
    assert precision(3 * other, real) < 0.6 and precision(0.2 * other, real) == 1
    assert recall(0.2 * other, real) < 0.3
    assert coverage(0.2 * other, real) < 0.5
    assert np.isnan(precision(other[:5], real)) and np.isnan(recall(other, real[:5])) and np.isnan(coverage(other[:5], real))


def test_central_interval_covers_ninety_percent_and_is_closed():
    abs_t = np.arange(60.0)
    assert cover90(cloud(2000, 0, 60), cloud(500, 1, 60), abs_t) == pytest.approx(0.9, abs=0.01)
    assert cover90(tile(cloud(100, 0, 60)), cloud(500, 1, 60), abs_t) == 0
    assert cover90(np.zeros((50, 60)), np.zeros((50, 60)), abs_t) == 1


def test_equal_size_takes_rows_of_both():
    a, b = cloud(30, 0), cloud(50, 1)
    x, y = equal_size(a, b, np.random.default_rng(0))
    assert np.array_equal(x, a) and y.shape == (30, 6)
    assert len(np.unique(y, axis=0)) == 30
    assert [len(z) for z in equal_size(a, b, np.random.default_rng(0), at_most=7)] == [7, 7]


def test_distances_need_two_cells():
    assert np.isnan(energy(cloud(1, 0), cloud(9, 1)))
    assert np.isnan(mmd(cloud(9, 0), cloud(1, 1)))
