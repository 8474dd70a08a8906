"""Velocities made of velocities: a network under a condition, and the guided combination of two of them.

Three different things that are easily confused: the *control* is the empty perturbation, a real condition; the *null* is a
learned "unknown"; leaving guidance out is w = 1. Guidance changes effect sizes, so any other w has to be calibrated on
validation perturbations, never on test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from counterflow.flow.path import Prediction, over_state, to_velocity
from counterflow.types import Backbone, Condition, Velocity


def broadcasts(network: Backbone) -> bool:
    """Whether `network` says that it takes one time, and one condition, for all cells: both are then embedded once."""
    return bool(getattr(network, "broadcasts", False))


def bind(network: Backbone, condition: Condition, prediction: Prediction = "v") -> Velocity:
    """The velocity of `network` under `condition`: a function of (x, t) that any solver can follow."""
    once = broadcasts(network)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x).reshape(-1)
        t = t if once else t.expand(len(x))
        return to_velocity(network(x, t, condition), x, t, prediction)

    return velocity


def classifier_free(v_condition: Velocity, v_null: Velocity, w: float, interval: tuple[float, float] | None = None) -> Velocity:
    """Classifier-free guidance, `v_null + w (v_condition - v_null)`: more typical of the condition for w > 1 (arXiv 2207.12598)."""
    return _away_from(v_null, v_condition, w, interval)


def contrast(v_condition: Velocity, v_control: Velocity, w: float, interval: tuple[float, float] | None = None) -> Velocity:
    """Contrast guidance, `v_control + w (v_condition - v_control)`: scales the effect of the perturbation by w."""
    return _away_from(v_control, v_condition, w, interval)


def composed(v_control: Velocity, parts: Sequence[Velocity]) -> Velocity:
    """Several perturbations at once from each alone: `v_control + sum of (v_part - v_control)` (composition, arXiv 2206.01714)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nothing = v_control(x, t)
        return nothing + sum((part(x, t) - nothing for part in parts), torch.zeros_like(nothing))

    return velocity


def _away_from(reference: Velocity, v: Velocity, w: float, interval: tuple[float, float] | None) -> Velocity:
    """`reference + w (v - reference)` while t is inside `interval` (arXiv 2404.07724), plain `v` outside."""
    if w == 1:
        return v
    lo, hi = interval or (0.0, 1.0)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        plain = v(x, t)
        inside = (t >= lo) & (t <= hi)
        if not inside.any():
            return plain
        from_reference = reference(x, t)
        return torch.where(over_state(inside, x), from_reference + w * (plain - from_reference), plain)

    return velocity
