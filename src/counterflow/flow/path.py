"""Rectified flow on one page. START READING HERE.

A cell travels in a straight line from a source state `x0` (noise, or a control cell) at t = 0 to a data state `x1`
(a perturbed cell) at t = 1. A network learns the velocity of that line from points along it::

    x_t = (1 - t) x0 + t x1          velocity = x1 - x0

    t    = uniform(len(x1), generator, x1.device)                            # flow/time.py
    x0   = couple("ot", control, x1, group, generator)                       # flow/coupling.py
    x_t, velocity = interpolate(x0, x1, t)
    loss = flow_loss(network(x_t, t, condition), x_t, t, velocity).mean()

Many lines cross at a point, so the network learns their mean velocity, and following *that* from t = 0 to t = 1 moves the
source distribution onto the data (flow/solvers.py)::

    x1 = midpoint(bind(network, condition), x0, torch.linspace(0, 1, 21))    # flow/guidance.py has bind

Time is the same everywhere: 0 is the source, 1 is the data, the velocity points at the data, and solvers step t upward.
Papers and libraries that put the noise at t = 1 have `v_theirs(x, t) = -v_ours(x, 1 - t)`.

References: rectified flow, arXiv 2209.03003; OT-CFM, 2302.00482; x-prediction with the v-loss, 2511.13720.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.errors import ConfigError, near

Prediction: TypeAlias = Literal["v", "x"]
"""What a network's output means: the velocity itself, or the data end x1 of the path."""

SMALLEST_REMAINDER = 0.05
"""x-prediction divides by the time that remains, 1 - t; below this value it divides by this value."""


def interpolate(x0: Float[Tensor, "b *s"], x1: Float[Tensor, "b *s"], t: Tensor) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:
    """The point at time `t` of the line from `x0` to `x1`, and the velocity along it; `t` is a scalar or one value per cell."""
    s = over_state(t, x1)
    return (1 - s) * x0 + s * x1, x1 - x0


def flow_loss(
    output: Float[Tensor, "b *s"],
    x_t: Float[Tensor, "b *s"],
    t: Tensor,
    velocity: Float[Tensor, "b *s"],
    *,
    prediction: Prediction = "v",
    weight: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, "b"]:
    """Squared velocity error of each cell, averaged over its features.

    One value per cell, so that the caller can average, weigh, or log by time and condition: `flow_loss(...).mean()` is the
    training loss. x-prediction is compared as a velocity too, and its target takes the same denominator as the output, so a
    perfect network has zero loss at every t.

    Parameters
    ----------
    output
        What the network returned for `x_t`: a velocity, or a guess of x1 when `prediction` is `"x"`.
    x_t, velocity
        From `interpolate`.
    t
        Scalar or one value per cell.
    weight
        One factor per cell, for example a function of `t`.
    """
    guess = to_velocity(output, x_t, t, prediction)
    truth = velocity if prediction == "v" else to_velocity(x1_hat(x_t, t, velocity), x_t, t, "x")
    loss = (guess - truth).square().flatten(1).mean(1)
    return loss if weight is None else weight * loss


def to_velocity(output: Tensor, x: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """The velocity that a network's `output` at (x, t) stands for."""
    if prediction == "v":
        return output
    if prediction == "x":
        return (output - x) / (1 - over_state(t, x)).clamp(min=SMALLEST_REMAINDER)
    raise ConfigError(f"unknown prediction {prediction!r}: {near(prediction, ('v', 'x'))}")


def x1_hat(x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """The data end of the line through (x, t) with this velocity; any source."""
    return x + (1 - over_state(t, x)) * velocity


def x0_hat(x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """The source end of the line through (x, t) with this velocity; any source. It is the noise when the source is noise."""
    return x - over_state(t, x) * velocity


def score(x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """Gradient of log p_t(x), for t < 1. Only for the source N(0, I) drawn independently of the data."""
    s = over_state(t, x)
    return (s * velocity - x) / (1 - s)


def over_state(t: Tensor, x: Float[Tensor, "b *s"]) -> Tensor:
    """A scalar as it is; one value per cell as [B, 1, ..., 1], so that it broadcasts over the state of any shape."""
    t = torch.as_tensor(t, device=x.device)
    return t if t.ndim == 0 else t.reshape(-1, *[1] * (x.ndim - 1))
