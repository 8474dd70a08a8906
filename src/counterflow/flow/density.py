"""How probable the end of a flow is: the change of log density along its path (FFJORD, arXiv 1810.01367).

A flow moves density as it moves points: d log p(x_t) / dt = - div v(x_t, t). Followed from the data back to the source, whose density is
known, that gives the density of the data end. Only for the source N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.flow.solvers import dopri5
from counterflow.types import Solver, Velocity

MOST_EXACT = 64  # features up to which the divergence is computed, not estimated: it takes one backward pass for each

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(velocity, the x it was computed from) -> its divergence, one number per cell."""


def exact(velocity: Float[Tensor, "b *s"], x: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
    """The trace of the Jacobian of each cell. Cells must not depend on each other."""
    total = velocity.new_zeros(len(x))
    flat = velocity.flatten(1)
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total = total + row.flatten(1)[:, i]
    return total


def hutchinson(probe: Float[Tensor, "b *s"]) -> Divergence:
    """An estimate without bias from one backward pass: `e J e` for a random `e` of signs, the same all along the path of a cell."""

    def divergence(velocity: Tensor, x: Tensor) -> Tensor:
        (product,) = torch.autograd.grad((velocity * probe).sum(), x)
        return (product * probe).flatten(1).sum(1)

    return divergence


def log_normal(x: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
    """Log density of N(0, I)."""
    flat = x.flatten(1)
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def log_density(
    velocity: Velocity,
    x: Float[Tensor, "b *s"],
    divergence: Divergence = exact,
    solver: Solver = dopri5,
) -> Float[Tensor, "b"]:
    """Log density of the data end of the flow at `x`, in nats: `log N(x0) - integral of div v from 0 to 1`.

    Parameters
    ----------
    velocity
        Of a flow that starts at N(0, I).
    divergence
        `exact`, or `hutchinson(probe)`.
    solver
        Follows point and density together.
    """
    shape, n = x.shape, x[0].numel()

    def both(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            point = state[:, :n].reshape(shape).detach().requires_grad_()
            v = velocity(point, t)
            change = divergence(v, point)
        return torch.cat([v.detach().flatten(1), change.detach()[:, None]], dim=1)

    end = solver(both, torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1), x.new_tensor([1.0, 0.0]))
    return log_normal(end[:, :n]) + end[:, n]  # integrated downwards, the change has its sign already
