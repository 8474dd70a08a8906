"""Counting up gives SciPy's quantiles, near zero and far out."""

import numpy as np
import pytest
from scipy.stats import binom, nbinom, poisson

from counterflow.spaces.quantiles import binomial_quantile, nb_quantile


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_binomial_quantiles_are_scipys(rng):
    n = rng.choice([0, 1, 2, 3, 7, 60, 400, 5000], size=(300, 40)).astype(np.int32)
    p = rng.uniform(0, 1, n.shape)
    p[:20] = 0.0
    u = rng.uniform(size=n.shape)
    found = binomial_quantile(u, n, p)
    np.testing.assert_array_equal(found, np.where(n == 0, 0, binom.ppf(u, np.maximum(n, 1), p)))
    assert found.max() > 1000 and (found[:20] == 0).all()
    np.testing.assert_array_equal(binomial_quantile(u, n, np.ones(n.shape)), n)


@pytest.mark.parametrize("theta", [0.05, 1.0, 20.0, 1e4])
def test_negative_binomial_quantiles_are_scipys(rng, theta):
    mean = rng.choice([0.0, 0.01, 0.5, 3.0, 50.0, 2000.0], size=(300, 40))
    u = rng.uniform(size=mean.shape)
    found = nb_quantile(u, mean, np.full(40, theta))
    np.testing.assert_array_equal(found, np.where(mean == 0, 0, nbinom.ppf(u, theta, theta / (theta + np.maximum(mean, 1e-9)))))
    assert found.max() > 100


def test_infinite_theta_is_poisson_beside_finite_ones(rng):
    mean = rng.choice([0.2, 4.0, 300.0], size=(200, 2))
    u = rng.uniform(size=mean.shape)
    found = nb_quantile(u, mean, np.array([np.inf, 2.0]))
    np.testing.assert_array_equal(found[:, 0], poisson.ppf(u[:, 0], mean[:, 0]))
    np.testing.assert_array_equal(found[:, 1], nbinom.ppf(u[:, 1], 2.0, 2 / (2 + mean[:, 1])))


def test_means_of_many_draws_are_the_distributions(rng):
    u = rng.uniform(size=(40_000, 2))
    counts = nb_quantile(u, np.full(u.shape, 1.5), np.array([0.5, np.inf]))
    assert counts.mean(0) == pytest.approx([1.5, 1.5], rel=0.05)
    assert counts.var(0) == pytest.approx([1.5 + 1.5**2 / 0.5, 1.5], rel=0.08)
