"""A random path with the same distribution at every time as the flow's: sampling by a stochastic differential equation.

    dx = (v + w s) dt + sqrt(2 w) dW        w(t) = 1 - t        s = (t v - x) / (1 - t), the score

Noise is added on the way and the score takes it out again, and with it some of what the steps before got wrong (SiT, arXiv 2401.08740).
With this w the drift is (1 + t) v - x, without a division. Only for the source N(0, I), drawn independently of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.errors import ConfigError
from counterflow.flow.solvers import midpoint
from counterflow.types import Solver, Velocity


def sde(noise: Iterator[Tensor]) -> Solver:
    """A solver, in Heun's steps (two evaluations each), that draws from `noise` what each step adds: tensors like x, N(0, I).

    The last step follows the flow: noise that is added at the end stays in the cells. So a grid of one step is the flow alone.
    """

    def solve(velocity: Velocity, x: Tensor, ts: Float[Tensor, "n"]) -> Tensor:
        ts = ts.to(x)
        if ts[0] > ts[-1]:
            raise ConfigError("the sde solver goes from noise to data only: invert with 'dopri5' or 'midpoint'")

        def drift(x: Tensor, t: Tensor) -> Tensor:
            return (1 + t) * velocity(x, t) - x

        for t, t_next in pairwise(ts[:-1]):
            h = t_next - t
            added = ((1 - t).square() - (1 - t_next).square()).sqrt() * next(noise)  # the variance of the step, integrated
            f = drift(x, t)
            ahead = drift(x + h * f + added, t_next)
            x = x + h / 2 * (f + ahead) + added
        return midpoint(velocity, x, torch.stack([ts[-2], ts[-1]]))

    return solve
