"""`dynamics`: for screens over time or dose. What moves a population is read off its course, what moves a cell is learnt on top.

The condition encoder runs a causal SSM over the populations measured so far (`counterflow.conditions.courses`), whose step size is the
interval that was measured. The velocity is linear in what it has come to at the time (or dose) asked for, plus that of an `mlp`.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from counterflow.backbones.mlp import mlp
from counterflow.nn.init import xavier_linear
from counterflow.types import COURSE, Condition


class Dynamics(nn.Module):
    """A network that needs courses.

    Parameters
    ----------
    state_shape, condition_dim, size, conditioning, width, depth, n_heads
        See `counterflow.backbones.mlp.mlp`.

    Raises
    ------
    ConfigError
        If the size or the conditioning does not exist, or the numbers do not fit together.
    """

    broadcasts = True
    reads_courses = True

    def __init__(
        self,
        state_shape: tuple[int, ...],
        condition_dim: int,
        *,
        size: str = "S",
        conditioning: Literal["adaln", "cross"] = "adaln",
        width: int | None = None,
        depth: int | None = None,
        n_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.cell = mlp(state_shape, condition_dim, size=size, conditioning=conditioning, width=width, depth=depth, n_heads=n_heads)
        self.population = xavier_linear(condition_dim, state_shape[0], bias=False)
        nn.init.zeros_(self.population.weight)

    def forward(self, x: Float[Tensor, "b s"], t: Float[Tensor, "..."], condition: Condition) -> Float[Tensor, "b s"]:
        """Velocity of the cells `x` at the flow time `t` under `condition`, whose token `COURSE` is the state of the population."""
        return self.cell(x, t, condition) + self.population(condition.tokens[:, COURSE]).to(x.dtype)
