"""Gene means that are set, by count transport."""

import numpy as np
import pytest

from counterflow.spaces.calibrated import gene_factors
from counterflow.spaces.counts import transport

CELLS, GENES = 400, 30


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_the_wanted_mean_is_reached_up_and_down(direction):
    rng = np.random.default_rng(0)
    library = rng.integers(1000, 4000, CELLS).astype(float)
    rate = rng.uniform(5, 80, GENES)
    before = library[:, None] / 1e4 * rate
    counts = rng.poisson(before)
    seeds = np.arange(CELLS, dtype=np.uint64)
    theta = np.full(GENES, 5.0)
    decoded = before * rng.uniform(0.5, 2, GENES)  # what a state says, wrongly
    expression = np.log1p(1e4 * counts / library[:, None]).mean(0)
    wanted = np.maximum(expression + direction * rng.uniform(0.2, 1.0, GENES), 0.05)
    factor = gene_factors(counts, library, before, decoded, wanted, theta, seeds)
    moved = transport(counts, before, decoded * factor, theta, 0, seeds)
    reached = np.log1p(1e4 * moved / library[:, None]).mean(0)
    assert np.abs(reached - wanted).max() < 0.03
    uncalibrated = np.log1p(1e4 * transport(counts, before, decoded, theta, 0, seeds) / library[:, None]).mean(0)
    assert np.abs(uncalibrated - wanted).max() > 0.3
    other = np.log1p(1e4 * transport(counts, before, decoded * factor, theta, 1, seeds) / library[:, None]).mean(0)
    assert np.abs(other - wanted).max() < 0.25  # nor is it the luck of one draw


def test_a_gene_that_is_wanted_silent_falls_and_nothing_is_infinite():
    counts = np.full((50, 2), 3)
    library, seeds = np.full(50, 1000.0), np.arange(50, dtype=np.uint64)
    before = np.full((50, 2), 3.0)
    factor = gene_factors(counts, library, before, before, np.array([0.0, np.log1p(30.0)]), np.full(2, np.inf), seeds)
    assert np.isfinite(factor).all() and factor[0] < 0.02 and factor[1] == pytest.approx(1, abs=0.1)


def test_means_are_set_where_a_state_knows_the_counts_of_its_cell():
    """Newton steps with the slope of Poisson counts overshoot here: cells with many counts are those that are thinned most."""
    rng = np.random.default_rng(0)
    library, seeds = np.full(CELLS, 2000.0), np.arange(CELLS, dtype=np.uint64)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (CELLS, GENES)))
    before = 0.2 + counts.astype(float)
    expression = np.log1p(1e4 * counts / library[:, None]).mean(0)
    wanted = expression * rng.uniform(0.4, 1.3, GENES)
    decoded, theta = before * rng.uniform(0.5, 2, GENES), np.full(GENES, 2.0)
    factor = gene_factors(counts, library, before, decoded, wanted, theta, seeds)
    moved = transport(counts, before, decoded * factor, theta, 0, seeds)
    assert np.abs(np.log1p(1e4 * moved / library[:, None]).mean(0) - wanted).max() < 0.02
