"""From source to data in one step or two.

**Reflow** (arXiv 2209.03003): a second network learns from pairs that the first one made, a source cell and where its flow ends. Such pairs
belong together, so their lines hardly cross, and what is learnt from them is nearly straight.

**MeanFlow** (arXiv 2505.13447, in our direction of time): the network gives the mean velocity `U(x, t, r)` on the way from t to a later
r, so `x + (r - t) U(x, t, r)` is there in one step. Along a path of velocity v its mean obeys::

    U = v + (r - t) dU/dt        dU/dt = v . grad_x U + d_t U

and training regresses U on the right-hand side, whose derivative is one forward-mode product with the tangents (v, 1, 0).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterflow.flow.path import over_state

Average: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, t, r) -> mean velocity from t to r; times are one per cell, or scalars."""

INSTANT = 0.5  # share of the cells that learn the velocity itself, r = t: what all else is built on


def intervals(
    t: Float[Tensor, "b"], other: Float[Tensor, "b"], generator: Generator, instant: float = INSTANT
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Start and end of the stretches to learn on: two times in order, or twice the first."""
    same = (torch.rand(len(t), generator=generator) < instant).to(t.device)
    return torch.where(same, t, torch.minimum(t, other)), torch.where(same, t, torch.maximum(t, other))


@torch.no_grad()
def mean_velocity(
    average: Average, x: Float[Tensor, "b *s"], t: Float[Tensor, "b"], r: Float[Tensor, "b"], velocity: Float[Tensor, "b *s"]
) -> Float[Tensor, "b *s"]:
    """What `average(x, t, r)` is to be: the right-hand side of the identity above, without a gradient."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        change = torch.func.jvp(lambda x, t: average(x, t, r), (x, t), (velocity, torch.ones_like(t)))[1]
    return velocity + over_state(r - t, x) * change


def jump(average: Average, x: Float[Tensor, "b *s"], ts: Float[Tensor, "n"]) -> Float[Tensor, "b *s"]:
    """Follow mean velocities: one evaluation for each step of the grid, exact for any number of them if `average` is."""
    for t, t_next in pairwise(ts.to(x)):
        x = x + (t_next - t) * average(x, t, t_next)
    return x
