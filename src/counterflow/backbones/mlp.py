"""`mlp`: a residual MLP on the state vector, steered by FiLM. The default: no tokens, fast, and enough for a latent state."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.errors import ConfigError, near
from counterflow.nn.attention import CrossAttention
from counterflow.nn.blocks import plain_norm
from counterflow.nn.embed import TimeEmbedding
from counterflow.nn.init import xavier_linear, zero_linear
from counterflow.nn.modulation import FiLM
from counterflow.types import Condition

SIZES = {
    "XS": {"width": 64, "depth": 2, "n_heads": 2},
    "S": {"width": 128, "depth": 3, "n_heads": 4},
    "M": {"width": 256, "depth": 4, "n_heads": 4},
    "B": {"width": 512, "depth": 6, "n_heads": 8},
    "L": {"width": 1024, "depth": 6, "n_heads": 16},
}


class FiLMBlock(nn.Module):
    """`h + Linear(SiLU(Linear(FiLM(norm(h)))))`; the last layer starts at 0, so a fresh block is the identity."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm = plain_norm(width)
        self.film = FiLM(condition_width, width)
        self.widen = xavier_linear(width, 2 * width)
        self.narrow = zero_linear(2 * width, width)

    def forward(self, h: Float[Tensor, "b d"], c: Float[Tensor, "#b c"]) -> Float[Tensor, "b d"]:
        """`c` is the embedded time, plus the pooled condition where there is no cross-attention."""
        return h + self.narrow(F.silu(self.widen(self.film(self.norm(h), c))))


class CrossFiLMBlock(nn.Module):
    """The hidden state, as a single token, asks the condition tokens; then a `FiLMBlock` steered by the time."""

    def __init__(self, width: int, condition_width: int, n_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.cross = CrossAttention(width, n_heads, condition_width)
        self.block = FiLMBlock(width, condition_width)
        nn.init.zeros_(self.cross.out.weight)

    def forward(
        self, h: Float[Tensor, "b d"], c: Float[Tensor, "#b c"], context: Float[Tensor, "#b k c"], mask: Bool[Tensor, "#b k"]
    ) -> Float[Tensor, "b d"]:
        """`c` is the embedded time, `context` the projected condition tokens, `mask` says which of them are real."""
        h = h + self.cross(self.norm(h)[:, None], context, mask)[:, 0]
        return self.block(h, c)


class FiLMMLP(nn.Module):
    """The network behind `mlp`. Time is embedded and the condition projected once per call, to half the width of the network.

    Parameters
    ----------
    n_features, condition_dim
        Length of the state and width of the condition.
    width, depth, n_heads
        Width and number of the blocks; heads of the cross-attention.
    conditioning
        `"adaln"` or `"cross"`.
    """

    broadcasts = True

    def __init__(
        self,
        n_features: int,
        condition_dim: int,
        width: int,
        depth: int,
        n_heads: int,
        conditioning: Literal["adaln", "cross"] = "adaln",
    ) -> None:
        super().__init__()
        if conditioning not in ("adaln", "cross"):
            raise ConfigError(f"the mlp has no conditioning {conditioning!r}: {near(conditioning, ('adaln', 'cross'))}")
        condition_width = max(width // 2, 1)
        self.conditioning = conditioning
        self.embed_time = TimeEmbedding(condition_width)
        self.project_condition = xavier_linear(condition_dim, condition_width)
        self.input = xavier_linear(n_features, width)
        self.blocks = nn.ModuleList(
            FiLMBlock(width, condition_width) if conditioning == "adaln" else CrossFiLMBlock(width, condition_width, n_heads)
            for _ in range(depth)
        )
        self.norm, self.film, self.output = plain_norm(width), FiLM(condition_width, width), zero_linear(width, n_features)

    def forward(self, x: Float[Tensor, "b s"], t: Float[Tensor, "..."], condition: Condition) -> Float[Tensor, "b s"]:
        """Velocity of the cells `x` at the time `t` under `condition`; a single time or a condition of batch 1 is broadcast."""
        c = self.embed_time(t)
        signals: tuple[Tensor, ...] = ()
        if self.conditioning == "adaln":
            c = c + self.project_condition(condition.pooled)
        else:
            signals = (self.project_condition(condition.tokens), condition.mask)
        h = self.input(x)
        for block in self.blocks:
            h = block(h, c, *signals)
        return self.output(self.film(self.norm(h), c)).to(x.dtype)


def mlp(
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
    size: str = "S",
    conditioning: Literal["adaln", "cross"] = "adaln",
    width: int | None = None,
    depth: int | None = None,
    n_heads: int | None = None,
) -> FiLMMLP:
    """A residual MLP on the state vector.

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    size
        `"XS"`, `"S"`, `"M"`, `"B"` or `"L"`; `width`, `depth` and `n_heads` override its numbers.
    conditioning
        `"adaln"`: time + pooled condition by FiLM. `"cross"`: time by FiLM, and the hidden state attends to the condition tokens.

    Raises
    ------
    ConfigError
        If the size or the conditioning does not exist, or the numbers do not fit together.
    """
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads)
    return FiLMMLP(vector_length(state_shape), condition_dim, **chosen, conditioning=conditioning)
