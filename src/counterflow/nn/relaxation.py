"""A causal state-space model over points at irregular times, whose step size is the interval that was measured.

Every channel of the state relaxes towards a level of its own at a rate of its own, and is corrected at each point by what was seen there::

    before_i = level + exp(-rate (time_i - time_{i-1})) (h_{i-1} - level)        h_i = before_i + gate_i (seen_i - before_i)

with ``h = 0`` at time 0. Between points this is the exact solution of ``dh/dt = rate (level - h)``, so an interval may be cut in two
without changing anything: no time step has to be chosen, and a time between or beyond the points is read off the same formula. Rates and
gates depend on the input: a selective SSM (arXiv 2312.00752) with a measured step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.nn.init import xavier_linear

SLOWEST, FASTEST = 0.1, 10.0  # rates at the start, per unit of time; log-spaced over the channels
_TRUSTING = 2.0  # the gate's bias: what was seen counts 88 % at the start


def relax(
    seen: Float[Tensor, "b n d"],
    gate: Float[Tensor, "b n d"],
    at: Float[Tensor, "b n"],
    known: Bool[Tensor, "b n"],
    until: Float[Tensor, "b"],
    level: Float[Tensor, "b d"],
    rate: Float[Tensor, "b d"],
) -> Float[Tensor, "b d"]:
    """The state at `until`, after the points `at` (ascending) that are `known`; the others are as if they were not there."""
    state, last = torch.zeros_like(level), torch.zeros_like(until)
    for i in range(at.shape[1]):
        interval = (at[:, i] - last).clamp_min(0)  # of a point that is not known it may be anything
        before = level + torch.exp(-rate * interval[:, None]) * (state - level)
        after = before + gate[:, i] * (seen[:, i] - before)
        state = torch.where(known[:, i, None], after, state)
        last = torch.where(known[:, i], at[:, i], last)
    return level + torch.exp(-rate * (until - last)[:, None]) * (state - level)


class Relaxation(nn.Module):
    """The SSM with what steers it.

    Parameters
    ----------
    n_features
        Length of what is seen at a point.
    condition_dim
        Width of the condition, which chooses level and rate of every channel.
    width
        Channels of the state.
    """

    def __init__(self, n_features: int, condition_dim: int, width: int) -> None:
        super().__init__()
        self.read = xavier_linear(n_features, width, bias=False)  # no effect is the zero of the state
        self.gate = xavier_linear(n_features + condition_dim, width)
        self.level = xavier_linear(condition_dim, width)
        self.rate = xavier_linear(condition_dim, width)
        self.log_rate = Parameter(torch.linspace(math.log(SLOWEST), math.log(FASTEST), width))
        nn.init.constant_(self.gate.bias, _TRUSTING)
        with torch.no_grad():
            self.rate.weight.zero_()

    def forward(
        self,
        seen: Float[Tensor, "b n f"],
        at: Float[Tensor, "b n"],
        known: Bool[Tensor, "b n"],
        until: Float[Tensor, "b"],
        condition: Float[Tensor, "b c"],
    ) -> Float[Tensor, "b d"]:
        """The state at `until`; see `relax`. Times from 0 on, in units in which a typical interval is about 1."""
        asked = condition[:, None].expand(-1, seen.shape[1], -1)
        gate = torch.sigmoid(self.gate(torch.cat([seen, asked], dim=-1)))
        rate = torch.exp(self.log_rate + F.hardtanh(self.rate(condition), -3, 3))
        return relax(self.read(seen), gate, at, known, until, self.level(condition), rate)
