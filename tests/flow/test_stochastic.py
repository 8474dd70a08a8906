"""The stochastic solver on a flow whose data are N(m, diag s²): other paths, the same moments."""

import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.flow.solvers import midpoint
from counterflow.flow.stochastic import sde


def normal(generator, shape):
    while True:
        yield torch.randn(shape, generator=generator, dtype=torch.float64)


def grid(n):
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def test_moments_of_the_data_are_kept(oracle, generator):
    x0 = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    x1 = sde(normal(generator, x0.shape))(oracle.velocity, x0, grid(20))
    assert ((x1.mean(0) - oracle.m) / oracle.s).abs().max() < 0.02
    assert (x1.std(0) / oracle.s - 1).abs().max() < 0.02
    assert abs(torch.corrcoef(x1.T) - torch.eye(3)).max() < 0.02


def test_the_error_of_a_moment_falls_with_the_steps(oracle, generator):
    x0 = torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    errors = [(sde(normal(generator, x0.shape))(oracle.velocity, x0, grid(n)).std(0) / oracle.s - 1).abs().max() for n in (5, 10, 20)]
    assert errors[0] > 0.02 > errors[1] > errors[2]


def test_moments_hold_half_way_too(oracle, generator):
    """Up to t = .5 on a grid that ends there."""
    x0 = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    x = sde(normal(generator, x0.shape))(oracle.velocity, x0, grid(20) / 2)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert (x.std(0) / oracle.variance(half).sqrt() - 1).abs().max() < 0.02
    assert (x.mean(0) - half * oracle.m).abs().max() < 0.02


def test_a_path_is_random_and_belongs_to_its_noise(oracle, generator):
    x0 = torch.randn(500, 3, generator=generator, dtype=torch.float64)

    def end(seed):
        return sde(normal(torch.Generator().manual_seed(seed), x0.shape))(oracle.velocity, x0, grid(20))

    assert torch.equal(end(1), end(1))
    assert (end(1) - end(2)).std() > 0.3 * oracle.s.mean()
    assert (end(1) - oracle.transport(x0)).std() > 0.3 * oracle.s.mean()


def test_a_single_step_is_the_flow_and_nothing_is_inverted(oracle, generator):
    x0 = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    assert torch.equal(sde(iter(()))(oracle.velocity, x0, grid(1)), midpoint(oracle.velocity, x0, grid(1)))
    with pytest.raises(ConfigError, match="noise to data only"):
        sde(iter(()))(oracle.velocity, x0, grid(4).flip(0))
