"""Mean velocities on a flow whose data are N(m, diag s²): its map is known, and so is the mean velocity between any two times."""

import pytest
import torch
from torch import nn

from counterflow.flow.few_step import INSTANT, intervals, jump, mean_velocity


def mean_of(oracle):
    """U(x, t, r): the flow keeps (x - t m) / sd(t), so it knows where it will be at r."""

    def average(x, t, r):
        s, e = (torch.as_tensor(time).reshape(-1, 1) for time in (t, r))
        end = e * oracle.m + (x - s * oracle.m) * (oracle.variance(e) / oracle.variance(s)).sqrt()
        return torch.where(
            e == s, oracle.velocity(x, s.reshape(-1) if s.numel() > 1 else s.reshape(())), (end - x) / (e - s).clamp(min=1e-12)
        )

    return average


@pytest.fixture
def points(oracle, generator):
    x = 2 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    t, r = torch.rand(2, 200, generator=generator, dtype=torch.float64).sort(0).values
    return x, 0.98 * t, 0.98 * r + 0.01


def test_the_identity_holds_exactly(oracle, points):
    x, t, r = points
    average = mean_of(oracle)
    wanted = average(x, t, r)
    assert (mean_velocity(average, x, t, r, oracle.velocity(x, t)) - wanted).abs().max() < 1e-9
    assert (oracle.velocity(x, t) - wanted).abs().max() > 0.5  # a mean velocity is not the velocity


def test_at_no_distance_it_is_the_velocity(oracle, points):
    x, t, _ = points
    velocity = oracle.velocity(x, t)
    assert torch.equal(mean_velocity(mean_of(oracle), x, t, t, velocity), velocity)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_jumps_arrives(oracle, generator, n):
    x0 = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    grid = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    assert torch.allclose(jump(mean_of(oracle), x0, grid), oracle.transport(x0), atol=1e-9)


def test_the_target_has_no_gradient_and_is_that_of_finite_differences(generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def average(x, t, r):
        return net(torch.cat([x, t[:, None], r[:, None]], 1))

    x, v = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    t, r = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    found = mean_velocity(average, x, t, r, v)
    assert not found.requires_grad
    h = 1e-5
    change = (average(x + h * v, t + h, r) - average(x - h * v, t - h, r)) / (2 * h)
    assert torch.allclose(found, v + (r - t)[:, None] * change, atol=1e-8)


def test_stretches_are_in_order_and_some_have_no_length(generator):
    a, b = torch.rand(2, 10_000, generator=generator)
    t, r = intervals(a, b, generator)
    assert (t <= r).all()
    assert abs((t == r).float().mean() - INSTANT) < 0.03
    assert torch.equal(t[t == r], a[t == r])  # those have the density of the time sampler


def test_one_jump_is_learnt(generator):
    """Four clouds around the origin: one Euler step along a velocity ends in the middle, one jump does not."""
    centres = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def average(x, t, r):
        t, r = (time.reshape(-1, 1).expand(len(x), 1) for time in (t, r))
        return net(torch.cat([x, t, r - t], 1))

    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(400):
        x1 = centres[torch.randint(0, 2, (256,), generator=generator)] + 0.2 * torch.randn(256, 2, generator=generator)
        x0 = torch.randn(256, 2, generator=generator)
        t, r = intervals(*torch.rand(2, 256, generator=generator), generator)
        x_t = torch.lerp(x0, x1, t[:, None])
        loss = (average(x_t, t, r) - mean_velocity(average, x_t, t, r, x1 - x0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x0 = torch.randn(500, 2, generator=generator)
    with torch.no_grad():
        jumped = jump(average, x0, torch.tensor([0.0, 1.0]))
        stepped = x0 + average(x0, torch.zeros(500), torch.zeros(500))
    assert (torch.cdist(jumped, centres).min(1).values < 1).float().mean() > 0.7
    assert (torch.cdist(stepped, centres).min(1).values < 1).float().mean() < 0.5
