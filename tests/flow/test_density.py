"""Log densities on a flow whose data are N(m, diag s²), and divergences of a network against its Jacobian."""

from functools import partial

import pytest
import torch
from torch import nn

from counterflow.flow.density import exact, hutchinson, log_density, log_normal
from counterflow.flow.solvers import dopri5, rk4

TIGHT = partial(dopri5, rtol=1e-10, atol=1e-10)


def truth(oracle, x):
    return torch.distributions.Normal(oracle.m, oracle.s).log_prob(x).sum(1)


@pytest.fixture
def points(oracle, generator):
    """Some of them far out."""
    return oracle.m + 3 * torch.randn(30, 3, generator=generator, dtype=torch.float64)


def test_the_exact_trace_gives_the_density_of_the_data(oracle, points):
    assert (log_density(oracle.velocity, points, exact, TIGHT) - truth(oracle, points)).abs().max() < 1e-8


def test_one_random_probe_is_exact_where_the_jacobian_is_diagonal(oracle, points, generator):
    signs = 2.0 * torch.randint(0, 2, points.shape, generator=generator).double() - 1
    assert (log_density(oracle.velocity, points, hutchinson(signs), TIGHT) - truth(oracle, points)).abs().max() < 1e-8


def test_the_default_tolerance_is_enough_for_three_digits_also_in_single_precision(oracle, points):
    assert (log_density(oracle.velocity, points) / truth(oracle, points) - 1).abs().max() < 1e-4

    def single(x, t):
        return oracle.velocity(x.double(), t.double()).float()

    found = log_density(single, points.float())
    assert found.dtype == torch.float32
    assert (found.double() - truth(oracle, points)).abs().max() < 0.02


def test_states_of_any_shape_and_any_solver(oracle, points):
    flat = log_density(oracle.velocity, points, exact, lambda v, x, ts: rk4(v, x, torch.linspace(1, 0, 41, dtype=x.dtype)))

    def shaped(x, t):
        return oracle.velocity(x.flatten(1), t).reshape(x.shape)

    assert torch.allclose(log_density(shaped, points.reshape(-1, 1, 3), exact, TIGHT), flat, atol=1e-5)


@pytest.fixture
def network(randomise):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    return net


def test_divergence_is_the_trace_of_the_jacobian_and_its_estimate_has_no_bias(network, generator):
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack([torch.autograd.functional.jacobian(network, row).trace() for row in x])
    assert torch.allclose(exact(network(x), x), wanted)
    draws = []
    for _ in range(2000):
        signs = 2.0 * torch.randint(0, 2, x.shape, generator=generator).double() - 1
        draws.append(hutchinson(signs)(network(x), x))
    draws = torch.stack(draws)
    assert ((draws.mean(0) - wanted).abs() < 4 * draws.std(0) / len(draws) ** 0.5).all() and (draws.std(0) > 0.05).all()


def test_density_integrates_to_one(network):
    """In one dimension, of a network that knows no closed form."""

    def velocity(x, t):
        return network(x.expand(-1, 5))[:, :1] * (1 + t)

    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)[:, None]
    density = log_density(velocity, grid, exact, TIGHT).exp()
    assert abs(torch.trapezoid(density, grid[:, 0]) - 1) < 1e-4
    assert (log_normal(grid).exp() - density).abs().max() > 0.01
