"""Follow a velocity from ts[0] to ts[-1]: one readable function per algorithm, all of the form `(velocity, x, ts) -> x`.

The grid `ts` may ascend (source to data) or descend (inversion). The velocity is called as `velocity(x, t)` with t a 0-dim
tensor of x's dtype. With N = len(ts) - 1 steps the number of function evaluations (NFE) is N for euler, 2N for midpoint and
heun, 4N for rk4; dopri5 chooses its own steps, 6 evaluations each, and one more at the start.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.errors import DivergenceError
from counterflow.flow.path import SMALLEST_REMAINDER
from counterflow.types import Solver, Velocity


def euler(velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Tensor:
    """Order 1, one evaluation per step: along the tangent."""
    for t, t_next in pairwise(ts.to(x)):
        x = x + (t_next - t) * velocity(x, t)
    return x


def midpoint(velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Tensor:
    """Order 2, two evaluations per step: with the velocity half a step ahead."""
    for t, t_next in pairwise(ts.to(x)):
        h = t_next - t
        x_half = x + h / 2 * velocity(x, t)
        x = x + h * velocity(x_half, t + h / 2)
    return x


def heun(velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Tensor:
    """Order 2, two evaluations per step: with the mean of the velocities at both ends."""
    for t, t_next in pairwise(ts.to(x)):
        h = t_next - t
        k1 = velocity(x, t)
        k2 = velocity(x + h * k1, t_next)
        x = x + h / 2 * (k1 + k2)
    return x


def rk4(velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Tensor:
    """Order 4, four evaluations per step: the classical Runge-Kutta method."""
    for t, t_next in pairwise(ts.to(x)):
        h = t_next - t
        k1 = velocity(x, t)
        k2 = velocity(x + h / 2 * k1, t + h / 2)
        k3 = velocity(x + h / 2 * k2, t + h / 2)
        k4 = velocity(x + h * k3, t_next)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


# The Dormand-Prince 5(4) tableau: nodes, stages, and the difference of the two embedded solutions.
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dopri5(
    velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"], *, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000
) -> Tensor:
    """Adaptive, order 5 with a 4th-order error estimate: Dormand and Prince (1980), step control after Hairer, Norsett and Wanner.

    Only the ends of `ts` matter. The whole batch takes the same steps, those that its most difficult cell needs; the error of a
    cell is a root mean square, so a tolerance means the same for any number of features and of cells. Six evaluations per tried
    step, because the last stage is the next step's first.

    Raises
    ------
    DivergenceError
        If the velocity is not finite, or `max_steps` tried steps do not reach the end.
    """
    t, end = float(ts[0]), float(ts[-1])
    if t == end:
        return x
    direction = 1.0 if end > t else -1.0
    k1 = velocity(x, x.new_tensor(t))
    h = min(abs(end - t), 0.01 * max(_rms(x), 1e-3) / max(_rms(k1), 1e-3))
    for _ in range(max_steps):
        last = h >= abs(end - t)
        step = end - t if last else direction * h
        ks = [k1]
        for c, row in zip(_C, _A, strict=True):
            x_next = x + step * sum(a * k for a, k in zip(row, ks, strict=True))
            ks.append(velocity(x_next, x.new_tensor(end if last and c == 1 else t + c * step)))
        error = _rms(step * sum(e * k for e, k in zip(_E, ks, strict=True)) / (atol + rtol * torch.maximum(x.abs(), x_next.abs())))
        if not error < float("inf"):
            raise DivergenceError(f"the velocity is not finite near t = {t:.4g}")
        if error <= 1:
            if last:
                return x_next
            t, x, k1 = t + step, x_next, ks[-1]
        h = abs(step) * min(10.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    raise DivergenceError(f"dopri5 took {max_steps} steps and is at t = {t:.6g}; raise rtol and atol or look at the velocity")


def _rms(x: Tensor) -> float:
    """Root mean square over the features of a cell, the largest of all cells."""
    return float(x.reshape(len(x), -1).square().mean(1).max().sqrt())


SOLVERS: dict[str, Solver] = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4, "dopri5": dopri5}


def trajectory(solver: Solver, velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Float[Tensor, "n b *s"]:
    """The states at every time of `ts`, the start included."""
    states = [x]
    for i in range(len(ts) - 1):
        states.append(solver(velocity, states[-1], ts[i : i + 2]))
    return torch.stack(states)


def last_step_euler(solver: Solver, remainder: float = SMALLEST_REMAINDER) -> Solver:
    """`solver` up to t = 1 - remainder, then one Euler step to t = 1: for networks that predict x1.

    With x-prediction the velocity close to t = 1 divides a small difference by a small number. One Euler step of exactly the
    remaining time returns the network's x1 itself. Grids that do not end at 1 are left alone.
    """
    almost = 1 - remainder

    def solve(velocity: Velocity, x: Tensor, ts: Tensor) -> Tensor:
        if ts[-1] != 1 or ts[0] >= almost:
            return solver(velocity, x, ts)
        x = solver(velocity, x, torch.cat([ts[ts < almost - 1e-6], ts.new_tensor([almost])]))
        return euler(velocity, x, ts.new_tensor([almost, 1.0]))

    return solve
