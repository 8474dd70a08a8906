"""Counts out of expected counts: exact distributions, and noise that belongs to the cell."""

from time import perf_counter

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

from counterflow.spaces.counts import (
    COUNT_STREAM,
    GAUSSIAN_STREAM,
    cell_generators,
    cell_noise,
    cell_seeds,
    draw_nb,
    fit_dispersion,
    round_counts,
    transport,
    transport_mean,
)


@pytest.fixture
def screen():
    """300 cells with their expected counts before and after, up for some genes and down for others, and NB counts."""
    rng = np.random.default_rng(0)
    before = rng.gamma(0.5, 2.0, 40) * rng.lognormal(0, 0.4, (300, 1))
    after = before * np.exp(rng.normal(0, 1, 40))
    theta = rng.gamma(2, 2, 40) + 0.2
    return rng.negative_binomial(theta, theta / (theta + before)), before, after, theta, cell_seeds([f"cell{i}" for i in range(300)])


def test_cell_seeds_are_stable_distinct_and_count_repeated_names():
    seeds = cell_seeds(["AAACCTG-1", "AAACCTG-2", "AAACCTG-1"])
    assert seeds.dtype == np.uint64
    assert len(set(seeds.tolist())) == 3
    assert seeds[0] == cell_seeds(["AAACCTG-1"])[0] == 13108040302963755903  # the same on every machine and in every release
    assert len(np.unique(cell_seeds([str(i) for i in range(20_000)]))) == 20_000


def test_noise_is_gaussian_and_depends_on_seed_and_cell_only():
    cells = cell_seeds([f"c{i}" for i in range(2000)])
    noise = cell_noise(0, cells, 50)
    assert noise.dtype == np.float32 and noise.shape == (2000, 50)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:, :10].T) - np.eye(10)).max() < 0.1
    order = np.random.default_rng(1).permutation(2000)[:100]
    assert np.array_equal(cell_noise(0, cells[order], 50), noise[order])
    assert not np.array_equal(cell_noise(1, cells[:5], 50), noise[:5])


def test_streams_of_one_cell_are_unrelated():
    cells = cell_seeds([f"c{i}" for i in range(2000)])
    a, b = (np.array([g.random() for g in cell_generators(0, cells, stream)]) for stream in (GAUSSIAN_STREAM, COUNT_STREAM))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_no_change_of_the_mean_changes_nothing(screen):
    counts, before, _, theta, cells = screen
    assert np.array_equal(transport(counts, before, before, theta, 0, cells), counts)
    assert np.array_equal(transport(counts, 0 * before, 0 * before, theta, 0, cells), counts)


def test_counts_are_integers_zeros_stay_and_each_gene_moves_in_its_direction(screen):
    counts, before, after, theta, cells = screen
    moved = transport(counts, before, after, theta, 0, cells)
    assert moved.dtype == np.int32 and moved.min() >= 0
    down = (after < before).all(0)
    assert (moved[:, down] <= counts[:, down]).all()
    assert (moved[:, ~down] >= counts[:, ~down]).all()
    assert (moved[:, down][counts[:, down] == 0] == 0).all()
    assert (transport(counts, before, 0 * after, theta, 0, cells) == 0).all()


@pytest.mark.parametrize(("mu0", "mu1"), [(3.0, 1.2), (1.2, 3.0), (0.3, 0.1), (60.0, 20.0), (20.0, 60.0)])
def test_poisson_counts_become_poisson_counts(mu0, mu1):
    """The whole distribution, by chi square."""
    n = 40_000
    counts = np.random.default_rng(5).poisson(mu0, (n, 1))
    full = lambda value: np.full((n, 1), value)  # noqa: E731
    moved = transport(counts, full(mu0), full(mu1), np.array([np.inf]), 0, np.arange(n, dtype=np.uint64))[:, 0]
    edges = np.unique(stats.poisson.ppf(np.linspace(0.01, 0.99, 12), mu1))
    expected = np.diff(stats.poisson.cdf(np.concatenate([[-1], edges, [np.inf]]), mu1)) * n
    observed = np.histogram(moved, np.concatenate([[-1], edges, [1e9]]) + 0.5)[0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert abs(moved.mean() - mu1) < 5 * np.sqrt(mu1 / n)
    assert abs(moved.var() / mu1 - 1) < 0.05


def test_mean_and_variance_are_those_of_thinning_and_of_the_added_nb(screen):
    """Many noises of the same 300 cells: the mean is `transport_mean`, the variance that of a binomial or an NB."""
    counts, before, after, theta, cells = screen
    draws = np.stack([transport(counts, before, after, theta, seed, cells) for seed in range(120)])
    r = np.minimum(after / before, 1)
    gained = np.maximum(after - before, 0)
    variance = counts * r * (1 - r) + gained + gained**2 / theta
    error = (draws.mean(0) - transport_mean(counts, before, after)) / np.sqrt(np.maximum(variance, 1e-12) / 120)
    free = variance > 1e-3
    assert abs(error[free].mean()) < 0.05 and abs(error[free].std() - 1) < 0.15
    assert abs(draws.var(0)[free].sum() / variance[free].sum() - 1) < 0.05


def test_cells_do_not_depend_on_their_batch(screen):
    counts, before, after, theta, cells = screen
    whole = transport(counts, before, after, theta, 7, cells)
    order = np.random.default_rng(2).permutation(300)
    assert np.array_equal(transport(counts[order], before[order], after[order], theta, 7, cells[order]), whole[order])
    for size in (1, 7, 256):
        parts = [slice(i, i + size) for i in range(0, 300, size)]
        assert np.array_equal(np.concatenate([transport(counts[p], before[p], after[p], theta, 7, cells[p]) for p in parts]), whole)
    assert np.array_equal(draw_nb(after[order], theta, 7, cells[order]), draw_nb(after, theta, 7, cells)[order])
    assert np.array_equal(transport(csr_matrix(counts), before, after, theta, 7, cells), whole)
    assert not np.array_equal(transport(counts, before, after, theta, 8, cells), whole)


def test_rounding_errors_of_the_mean_change_at_most_single_counts(screen):
    """Networks give slightly different floats in different batches; that must not reach the other genes of the cell."""
    counts, before, after, theta, cells = screen
    jitter = 1 + 1e-7 * np.random.default_rng(3).standard_normal(after.shape)
    differ = transport(counts, before, after, theta, 0, cells) != transport(counts, before, after * jitter, theta, 0, cells)
    assert differ.sum() <= 2
    null = transport(counts, before, before * jitter, theta, 0, cells) != counts
    assert null.sum() <= 2


def test_stronger_effects_move_the_same_cell_further(screen):
    counts, before, after, theta, cells = screen
    halfway = transport(counts, before, (before + after) / 2, theta, 0, cells)
    whole = transport(counts, before, after, theta, 0, cells)
    down = (after < before).all(0)
    assert (whole[:, down] <= halfway[:, down]).all() and (whole[:, ~down] >= halfway[:, ~down]).all()


@pytest.mark.parametrize("theta", [0.1, 1.0, 30.0, 1e4, np.inf])
@pytest.mark.parametrize("mu", [0.02, 1.5, 200.0])
def test_drawn_counts_are_negative_binomial(mu, theta):
    n = 20_000
    x = draw_nb(np.full((n, 1), mu), np.array([theta]), 3, np.arange(n, dtype=np.uint64))
    variance = mu + mu**2 / theta
    assert abs(x.mean() - mu) < 5 * np.sqrt(variance / n)
    assert abs((x == 0).mean() - (1 + mu / theta) ** -theta if np.isfinite(theta) else (x == 0).mean() - np.exp(-mu)) < 0.02
    assert abs(x.var() / variance - 1) < 0.25


def test_extreme_values_stay_finite():
    mean = np.array([[0.0, 1e-30, 1e-12, 1e5, 1e-3, 5e3]], dtype=np.float32)
    theta = np.array([1e-2, 1e4, 1e-2, 1e-2, np.inf, 1e4])
    cells = np.arange(200, dtype=np.uint64)
    x = draw_nb(np.repeat(mean, 200, 0), theta, 0, cells)
    assert x.min() >= 0 and (x[:, :3] == 0).all() and abs(x[:, 5].mean() - 5e3) < 50
    moved = transport(np.full((200, 6), 3000), np.full((200, 6), 3000.0), np.repeat(mean, 200, 0), theta, 0, cells)
    assert moved.min() >= 0 and (moved[:, :3] == 0).all()


def test_a_diverged_model_is_not_turned_into_counts_and_negative_means_are_zero(screen):
    counts, before, after, theta, cells = screen
    broken = after.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ArithmeticError, match="1 expected counts are not finite"):
        transport(counts, before, broken, theta, 0, cells)
    with pytest.raises(ArithmeticError, match="not finite"):
        draw_nb(broken, theta, 0, cells)
    assert (transport(counts, before, np.full_like(after, -0.1), theta, 0, cells) == 0).all()
    assert np.array_equal(transport(counts, np.full_like(before, -0.1), np.full_like(before, -0.2), theta, 0, cells), counts)


def test_fit_dispersion_recovers_theta_and_clips():
    rng = np.random.default_rng(0)
    theta = np.array([0.3, 1.0, 5.0, 20.0])
    mean = rng.gamma(3, 1, (20_000, 1)) * np.array([1.0, 2.0, 4.0, 8.0])
    counts = rng.negative_binomial(theta, theta / (theta + mean))
    fitted = fit_dispersion(counts, mean)
    assert np.abs(np.log(fitted / theta)).max() < 0.15
    assert np.allclose(fit_dispersion(csr_matrix(counts), mean), fitted)
    under = fit_dispersion(np.full((100, 1), 3), np.full((100, 1), 3.0))
    never = fit_dispersion(np.zeros((100, 1)), np.zeros((100, 1)))
    assert under == never == [1e4]
    assert fit_dispersion(np.r_[np.full(999, 0), 10_000][:, None], np.full((1000, 1), 10.0)) == [0.05]


def test_rounding():
    assert np.array_equal(round_counts(np.array([-0.3, 0.4, 0.6, 7.0])), [0, 0, 1, 7])


def test_a_thousand_cells_take_a_few_seconds():
    rng = np.random.default_rng(0)
    before = rng.gamma(0.3, 0.5, 6500) * np.ones((1000, 1))
    counts, after = rng.poisson(before), before * np.exp(rng.normal(0, 0.7, 6500))
    start = perf_counter()
    transport(counts, before, after, np.full(6500, 2.0), 0, np.arange(1000, dtype=np.uint64))
    assert perf_counter() - start < 15
