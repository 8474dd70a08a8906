"""How a vector steers a network: it shifts, scales and gates what flows through."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from counterflow.nn.init import zero_linear


class Modulation(NamedTuple):
    """What one sublayer is told: `x + gate * sublayer(modulate(norm(x), shift, scale))`."""

    shift: Float[Tensor, "#b ... d"]
    scale: Float[Tensor, "#b ... d"]
    gate: Float[Tensor, "#b ... d"]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`. The 1 matters: with zero-initialised modulation the sublayer still sees `x`."""
    return torch.addcmul(shift, x, 1 + scale)


class AdaLNZero(nn.Module):
    """A vector to one `Modulation` per sublayer: SiLU and one Linear that starts at 0 (DiT, arXiv 2212.09748).

    The vector `c` carries whatever axes its outputs need: (B, 1, D) broadcasts over tokens, (1, 1, D) over cells too.
    """

    def __init__(self, condition_width: int, width: int, n_sublayers: int) -> None:
        super().__init__()
        self.n_sublayers = n_sublayers
        self.linear = zero_linear(condition_width, 3 * n_sublayers * width)

    def forward(self, c: Float[Tensor, "b ... c"]) -> list[Modulation]:
        """The modulations in the order of the sublayers; each is shift, scale, gate."""
        chunks = self.linear(F.silu(c)).chunk(3 * self.n_sublayers, dim=-1)
        return [Modulation(*chunks[3 * i : 3 * i + 3]) for i in range(self.n_sublayers)]


class FiLM(nn.Module):
    """Shift and scale `x` by a vector (FiLM, arXiv 1709.07871); starts as the identity."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.linear = zero_linear(condition_width, 2 * width)

    def forward(self, x: Float[Tensor, "b ... d"], c: Float[Tensor, "#b ... c"]) -> Float[Tensor, "b ... d"]:
        """`c` has the axes of `x`, of size 1 where it is to be broadcast."""
        shift, scale = self.linear(F.silu(c)).chunk(2, dim=-1)
        return modulate(x, shift, scale)
