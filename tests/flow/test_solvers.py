"""Solvers on a flow whose answer is known: N(0, I) to N(m, diag s²)."""

from math import log

import pytest
import torch

from counterflow.flow.path import to_velocity
from counterflow.flow.solvers import SOLVERS, dopri5, euler, heun, last_step_euler, midpoint, rk4, trajectory


class Counted:
    def __init__(self, velocity):
        self.velocity, self.calls = velocity, 0

    def __call__(self, x, t):
        assert t.ndim == 0 and t.dtype == x.dtype
        self.calls += 1
        return self.velocity(x, t)


def grid(n, start=0.0, end=1.0):
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2), (heun, 2), (rk4, 4)])
@pytest.mark.parametrize("span", [(0.0, 0.8), (0.8, 0.0)])
def test_order_of_convergence_on_the_gaussian_flow(oracle, generator, solver, order, span):
    """The variance along a straight path is quadratic in t; that lifts midpoint to a third order here."""
    scale = [oracle.variance(torch.tensor(t, dtype=torch.float64)).sqrt() for t in span]
    z = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    start, end = (t * oracle.m + c * z for t, c in zip(span, scale, strict=True))
    errors = [(solver(oracle.velocity, start, grid(n, *span)) - end).square().mean().sqrt() for n in (40, 80)]
    slope = log(errors[0] / errors[1], 2)
    assert abs(slope - (3 if solver is midpoint else order)) < 0.15, f"measured order {slope:.2f}"


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2), (heun, 2), (rk4, 4)])
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_order_of_convergence_on_an_equation_without_symmetry(solver, order, span):
    """dx/dt = x cos t has x = exp(sin t)."""
    start, end = torch.tensor(span, dtype=torch.float64).sin().exp().unbind()
    errors = [abs(solver(lambda x, t: x * torch.cos(t), start[None], grid(n, *span)) - end) for n in (100, 200)]
    slope = log(errors[0] / errors[1], 2)
    assert abs(slope - order) < 0.15, f"measured order {slope:.2f}"


@pytest.mark.parametrize("name", SOLVERS)
def test_exact_velocity_arrives_at_the_data(oracle, generator, name):
    """The sign convention: whoever swaps the ends of the path does not end at (2, -1, .5)."""
    x0 = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    x1 = SOLVERS[name](oracle.velocity, x0, grid(40))
    assert torch.allclose(x1.mean(0), oracle.m, atol=0.05)
    assert torch.allclose(x1.std(0), oracle.s, atol=0.08 if name == "euler" else 0.02)


def test_dopri5_keeps_its_tolerance_and_returns(oracle, generator):
    x0 = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        there = dopri5(oracle.velocity, x0, grid(1), rtol=tolerance, atol=tolerance)
        back = dopri5(oracle.velocity, there, grid(1, 1.0, 0.0), rtol=tolerance, atol=tolerance)
        errors.append((there - oracle.transport(x0)).abs().max())
        assert (back - x0).abs().max() < 50 * tolerance
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_dopri5_in_float32_and_on_one_point(oracle):
    x0 = torch.tensor([[0.3, -1.0, 2.0]])
    x1 = dopri5(lambda x, t: oracle.velocity(x.double(), t.double()).float(), x0, torch.tensor([0.0, 1.0]))
    assert x1.dtype == torch.float32
    assert torch.allclose(x1.double(), oracle.transport(x0.double()), atol=1e-3)
    assert torch.equal(dopri5(oracle.velocity, x0, torch.tensor([0.5, 0.5])), x0)


def test_dopri5_spends_more_on_harder_problems_and_says_when_it_cannot(oracle):
    easy, hard = Counted(lambda x, t: torch.ones_like(x)), Counted(lambda x, t: 20 * torch.cos(40 * t) * torch.ones_like(x))
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.allclose(dopri5(easy, x, grid(1)), x + 1)
    end = dopri5(hard, x, grid(1))
    assert torch.allclose(end, x + torch.sin(torch.tensor(40.0, dtype=torch.float64)) / 2, atol=1e-3)
    assert easy.calls < 40 < hard.calls
    assert easy.calls % 6 == 1
    with pytest.raises(ArithmeticError, match="not finite"):
        dopri5(lambda x, t: x / (t - t), x + 1, grid(1))
    with pytest.raises(ArithmeticError, match="5 steps"):
        dopri5(hard, x, grid(1), max_steps=5)


@pytest.mark.parametrize(("name", "per_step"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_number_of_function_evaluations(oracle, name, per_step):
    counted = Counted(oracle.velocity)
    SOLVERS[name](counted, torch.zeros(2, 3, dtype=torch.float64), torch.linspace(0, 1, 8))
    assert counted.calls == 7 * per_step


@pytest.mark.parametrize("name", SOLVERS)
def test_trajectory_has_every_state_and_ends_like_the_solver(oracle, generator, name):
    x0 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    states = trajectory(SOLVERS[name], oracle.velocity, x0, grid(6))
    assert states.shape == (7, 5, 3)
    assert torch.equal(states[0], x0)
    assert torch.allclose(states[-1], SOLVERS[name](oracle.velocity, x0, grid(6)), atol=1e-4)


def test_states_of_any_shape(oracle):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    for solver in SOLVERS.values():
        assert torch.allclose(solver(lambda x, t: 2 * t * torch.ones_like(x), x, torch.linspace(0, 1, 101)), x + 1, atol=0.02)


@pytest.mark.parametrize("solver", [euler, heun, rk4, dopri5])
@pytest.mark.parametrize("n", [1, 10, 20, 73])
def test_x_prediction_ends_exactly_at_the_predicted_data(solver, n):
    data = torch.tensor([[3.0, -2.0]])
    velocity = lambda x, t: to_velocity(data.expand_as(x), x, t, "x")  # noqa: E731
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    x1 = last_step_euler(solver)(velocity, x0, torch.linspace(0, 1, n + 1))
    assert torch.allclose(x1, data.expand_as(x1), atol=1e-5)
    assert not torch.allclose(rk4(velocity, x0, torch.linspace(0, 1, 101)), data.expand_as(x0), atol=1e-3)  # why it exists
