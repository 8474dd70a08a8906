"""The path against the closed-form Gaussian flow, in float64."""

import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.flow.path import SMALLEST_REMAINDER, flow_loss, interpolate, score, to_velocity, x0_hat, x1_hat


@pytest.mark.parametrize("state", [(3,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("per_cell", [True, False])
def test_path_starts_at_the_source_ends_at_the_data_and_moves_with_its_velocity(state, per_cell, generator):
    x0, x1 = torch.randn(2, 6, *state, generator=generator, dtype=torch.float64)
    time = (
        (lambda value: torch.full((6,), value, dtype=torch.float64))
        if per_cell
        else (lambda value: torch.tensor(value, dtype=torch.float64))
    )
    assert torch.equal(interpolate(x0, x1, time(0.0))[0], x0)
    assert torch.equal(interpolate(x0, x1, time(1.0))[0], x1)
    (a, v), (b, _) = interpolate(x0, x1, time(0.3)), interpolate(x0, x1, time(0.3001))
    assert torch.allclose((b - a) / 1e-4, v, atol=1e-3)
    assert v.shape == x1.shape


def test_each_cell_has_its_own_time(generator):
    x0, x1, t = torch.zeros(5, 2, 3), torch.ones(5, 2, 3), torch.rand(5, generator=generator)
    x_t, _ = interpolate(x0, x1, t)
    assert torch.equal(x_t[:, 1, 2], t)


def test_conversions_round_trip(generator):
    x0, x1 = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    t = 0.9 * torch.rand(50, generator=generator, dtype=torch.float64)
    x_t, v = interpolate(x0, x1, t)
    assert torch.allclose(x1_hat(x_t, t, v), x1, atol=1e-12)
    assert torch.allclose(x0_hat(x_t, t, v), x0, atol=1e-12)
    assert torch.allclose(to_velocity(x1_hat(x_t, t, v), x_t, t, "x"), v, atol=1e-12)
    assert torch.equal(to_velocity(v, x_t, t, "v"), v)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 0.99])
def test_exact_velocity_gives_the_posterior_means_and_the_score(oracle, generator, t):
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor(t, dtype=torch.float64)
    v = oracle.velocity(x, t)
    assert torch.allclose(x1_hat(x, t, v), oracle.posterior_x1(x, t), atol=1e-10)
    assert torch.allclose(x0_hat(x, t, v), oracle.posterior_x0(x, t), atol=1e-10)
    assert torch.allclose(score(x, t, v), oracle.score(x, t), atol=1e-8)


def test_x_prediction_has_the_loss_of_the_velocity_it_means(generator):
    x0, x1 = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, 1 - SMALLEST_REMAINDER, 40, dtype=torch.float64)
    x_t, v = interpolate(x0, x1, t)
    output = v + torch.randn(v.shape, generator=generator, dtype=torch.float64)
    by_v = flow_loss(output, x_t, t, v)
    by_x = flow_loss(x1_hat(x_t, t, output), x_t, t, v, prediction="x")
    assert by_v.shape == (40,)
    assert torch.allclose(by_v, by_x, rtol=1e-9)
    assert torch.allclose(by_v, (output - v).square().mean(1))


def test_perfect_x_prediction_has_no_loss_at_any_time_and_a_wrong_one_a_bounded_loss(generator):
    x0, x1 = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 0.99, 1.0], dtype=torch.float64)
    x_t, v = interpolate(x0, x1, t)
    assert flow_loss(x1, x_t, t, v, prediction="x").max() < 1e-20
    wrong = flow_loss(x1 + 1, x_t, t, v, prediction="x")
    assert torch.allclose(wrong, 1 / (1 - t).clamp(min=SMALLEST_REMAINDER).square())


def test_exact_velocity_minimises_the_expected_loss(oracle, generator):
    x0 = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    x1 = oracle.transport(torch.randn(200_000, 3, generator=generator, dtype=torch.float64))
    t = torch.full((200_000,), 0.4, dtype=torch.float64)
    x_t, v = interpolate(x0, x1, t)
    exact = oracle.velocity(x_t, t)
    best = flow_loss(exact, x_t, t, v).mean()
    for other in (exact + 0.05, exact - 0.05, 1.05 * exact, 0.95 * exact):
        assert flow_loss(other, x_t, t, v).mean() > best


def test_weight_multiplies_each_cell(generator):
    output, x, v = torch.randn(3, 5, 2, generator=generator)
    t, weight = torch.rand(5, generator=generator), torch.arange(5.0)
    assert torch.equal(flow_loss(output, x, t, v, weight=weight), weight * flow_loss(output, x, t, v))


def test_unknown_prediction_is_named():
    with pytest.raises(ConfigError, match="eps"):
        to_velocity(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor(0.5), "eps")
