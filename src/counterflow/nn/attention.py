"""Attention mixers, all on `F.scaled_dot_product_attention`. Masks are boolean, True = may be attended to.

With `qk_norm` queries and keys are RMS-normalised per head before they meet (arXiv 2302.05442): their products stay bounded however
large the weights grow, so that training in bfloat16 does not run away. Off by default, as in the reference DiT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.nn.init import xavier_linear
from counterflow.nn.precision import at_least_fp32


def attend(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "#b h k d"], v: Float[Tensor, "#b h k d"], mask: Bool[Tensor, "#b k"] | None
) -> Float[Tensor, "b n hd"]:
    """Softmax attention of the queries over the keys that `mask` allows; keys shared by all cells may have batch 1."""
    k, v = k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1)
    key_mask = None if mask is None else mask[:, None, None, :]
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask), "b h n d -> b n (h d)")


def check_heads(width: int, n_heads: int) -> None:
    """Raise a `ConfigError` unless `n_heads` divides `width`."""
    if n_heads < 1 or width % n_heads:
        raise ConfigError(f"width {width} cannot be split into {n_heads} heads: n_heads must divide width")


class HeadNorm(nn.RMSNorm):
    """RMSNorm over the channels of a head, in fp32 at least; gives back the type it was given."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__(width // n_heads, eps=1e-6)

    def forward(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Queries or keys."""
        return super().forward(*at_least_fp32(x)).to(x.dtype)


class QKNorm(nn.Module):
    """A norm for the queries and one for the keys; without `wanted`, neither."""

    def __init__(self, width: int, n_heads: int, wanted: bool) -> None:
        super().__init__()
        self.q = HeadNorm(width, n_heads) if wanted else nn.Identity()
        self.k = HeadNorm(width, n_heads) if wanted else nn.Identity()

    def forward(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h k d"]
    ) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h k d"]]:
        """Queries and keys."""
        return self.q(q), self.k(k)


class SelfAttention(nn.Module):
    """Every token attends to every token: O(N^2), permutation-equivariant.

    Parameters
    ----------
    width
        Width of the tokens.
    n_heads
        Number of heads; must divide `width`.
    qk_norm
        Whether queries and keys are normalised.
    """

    def __init__(self, width: int, n_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.norm = QKNorm(width, n_heads, qk_norm)
        self.qkv = xavier_linear(width, 3 * width)
        self.out = xavier_linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; those with `mask` False are not attended to."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.n_heads)
        q, k = self.norm(q, k)
        return self.out(attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Tokens ask, a context of another length answers.

    Parameters
    ----------
    width
        Width of the asking tokens and of the output.
    n_heads
        Number of heads; must divide `width`.
    context_width
        Width of the context tokens; `width` when None.
    qk_norm
        Whether queries and keys are normalised.
    """

    def __init__(self, width: int, n_heads: int, context_width: int | None = None, *, qk_norm: bool = False) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.norm = QKNorm(width, n_heads, qk_norm)
        self.q = xavier_linear(width, width)
        self.kv = xavier_linear(context_width or width, 2 * width)
        self.out = xavier_linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "#b k c"], mask: Bool[Tensor, "#b k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """What each token of `x` finds in `context`; at least one context token per cell must be allowed by `mask`."""
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.n_heads)
        k, v = rearrange(self.kv(context), "b k (two h d) -> two b h k d", two=2, h=self.n_heads)
        q, k = self.norm(q, k)
        return self.out(attend(q, k, v, mask))


class InducedSetAttention(nn.Module):
    """Attention through `n_inducing` learned points: O(N m), permutation-equivariant (Set Transformer, arXiv 1810.00825).

    The points gather a summary of the set, then every token reads the summary.

    Parameters
    ----------
    width
        Width of the tokens.
    n_heads
        Number of heads; must divide `width`.
    n_inducing
        Number of inducing points m.
    qk_norm
        Whether queries and keys are normalised.
    """

    def __init__(self, width: int, n_heads: int, n_inducing: int = 64, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.points = Parameter(torch.randn(n_inducing, width))
        self.gather = CrossAttention(width, n_heads, qk_norm=qk_norm)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.read = CrossAttention(width, n_heads, qk_norm=qk_norm)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; those with `mask` False are left out of the summary."""
        points = self.points.expand(len(x), -1, -1)
        summary = self.norm(points + self.gather(points, x, mask))
        return self.read(x, summary)
