"""The words of the project: what travels between data, conditions, networks and solvers.

Dimension key, used in comments, annotations and einops strings everywhere::

    B cells    G genes    S state features    N tokens    D model width
    K condition tokens    C condition width   H heads     E SSM state   M covariates
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor


class ConditionIds(NamedTuple):
    """What the data package emits: integers and numbers, no names.

    The control is the *empty* perturbation set (all zeros); the null ("unknown") is chosen by the encoder and is never an id.
    """

    perturbation: Int[Tensor, "b k"]  # 0 = padding, entities start at 1
    dose: Float[Tensor, "b k"]  # in the units of the data; 1 where the screen has no dose
    time: Float[Tensor, "b"]  # real time after the perturbation, never the flow's t; 0 where there is none
    covariates: Int[Tensor, "b m"]  # 0 = null, levels start at 1


class ConditionSpec(NamedTuple):
    """One experimental condition in the user's words; the control has no parts. Equal conditions compare and hash equal."""

    parts: tuple[str, ...] = ()  # sorted entity names; the same name twice is a different condition from once
    doses: tuple[float, ...] = ()  # one per part; 1.0 where the screen has no dose
    time: float = 0.0


class Condition(NamedTuple):
    """What a backbone reads."""

    pooled: Float[Tensor, "b c"]  # AdaLN and FiLM
    tokens: Float[Tensor, "b k c"]  # cross-attention and in-context
    mask: Bool[Tensor, "b k"]  # True = real token; never all False


COURSE = 1
"""Where among the tokens of a condition that of its course is (`counterflow.conditions.courses`); the context is before it."""


class Batch(NamedTuple):
    """One optimiser step: target cells, controls they may be paired with, and what was done to them."""

    target: Float[Tensor, "b *s"]
    control: Float[Tensor, "b *s"] | None
    ids: ConditionIds
    group: Int[Tensor, "b"]  # cells with equal group may be paired
    library: Float[Tensor, "b"]  # counts per target cell over all genes
    own: Int[Tensor, "o"] | None = None  # rows that the network of this process sees, where several share a step; None: all

    def rows(self, rows: Tensor) -> Batch:
        """Some of the cells, as a batch of its own."""
        ids = ConditionIds(*(column[rows] for column in self.ids))
        control = None if self.control is None else self.control[rows]
        return Batch(self.target[rows], control, ids, self.group[rows], self.library[rows])


class Backbone(Protocol):
    """Any network that predicts a velocity: the shape of the state in, the same shape out.

    With an attribute ``broadcasts = True`` it is asked with a time of shape [1] and a condition of batch 1 where all cells share them.
    """

    def __call__(self, x: Float[Tensor, "b *s"], t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b *s"]:
        """Velocity dx/dt of the cells `x` at flow time `t` in [0, 1] under `condition`."""
        ...


Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> dx/dt with the condition already bound; t is a scalar tensor or one value per cell."""

Solver: TypeAlias = Callable[[Velocity, Tensor, Tensor], Tensor]
"""(velocity, x, ts) -> x at ts[-1]; ts is an increasing or decreasing 1-D grid."""
