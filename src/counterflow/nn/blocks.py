"""Transformer blocks, one for each way of listening to a condition, around any mixer.

A mixer is any module from tokens to tokens, `mixer(x)`; one that is used in context also takes a key mask, `mixer(x, mask)`.
Swap the mixer and the block does not notice: attention, set attention and state-space models all go here.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.nn.attention import CrossAttention
from counterflow.nn.init import xavier_linear
from counterflow.nn.modulation import AdaLNZero, FiLM, Modulation, modulate
from counterflow.nn.packing import RECTANGULAR, Layout


def plain_norm(width: int) -> nn.LayerNorm:
    """LayerNorm without its own scale and shift: the modulation brings them."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def token_mlp(width: int, ratio: int = 4) -> nn.Sequential:
    """The per-token half of a block: Linear, GELU (tanh), Linear."""
    return nn.Sequential(xavier_linear(width, ratio * width), nn.GELU(approximate="tanh"), xavier_linear(ratio * width, width))


def spread(modulations: list[Modulation], layout: Layout) -> list[Modulation]:
    """Modulations of cells, made ready for the tokens of that layout."""
    return [Modulation(*map(layout.spread, modulation)) for modulation in modulations]


class AdaLNBlock(nn.Module):
    """One vector, made of time and condition, modulates both sublayers (AdaLN-Zero, arXiv 2212.09748).

    The gates start at 0, so a fresh block is the identity.
    """

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.modulation = AdaLNZero(width, width, n_sublayers=2)
        self.norm_mixer, self.mixer = plain_norm(width), mixer
        self.norm_mlp, self.mlp = plain_norm(width), token_mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "#cells 1 d"], layout: Layout = RECTANGULAR) -> Float[Tensor, "b n d"]:
        """`c` is the time embedding plus the projected condition."""
        mix, mlp = spread(self.modulation(c), layout)
        x = x + mix.gate * layout.mix(self.mixer, modulate(self.norm_mixer(x), mix.shift, mix.scale))
        return x + mlp.gate * self.mlp(modulate(self.norm_mlp(x), mlp.shift, mlp.scale))


class PlainAdaLNBlock(nn.Module):
    """Shift and scale without gates: the sublayers are at work from the first step ("adaLN" of arXiv 2212.09748, its ablation)."""

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.film_mixer, self.film_mlp = FiLM(width, width), FiLM(width, width)
        self.norm_mixer, self.mixer = plain_norm(width), mixer
        self.norm_mlp, self.mlp = plain_norm(width), token_mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "#cells 1 d"], layout: Layout = RECTANGULAR) -> Float[Tensor, "b n d"]:
        """`c` is the time embedding plus the projected condition."""
        c = layout.spread(c)
        x = x + layout.mix(self.mixer, self.film_mixer(self.norm_mixer(x), c))
        return x + self.mlp(self.film_mlp(self.norm_mlp(x), c))


class LayerScale(nn.Module):
    """A learned factor per feature that starts small (arXiv 2103.17239): the branch it follows opens slowly."""

    def __init__(self, width: int, start: float = 1e-4) -> None:
        super().__init__()
        self.factor = Parameter(torch.full((width,), start))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Scale the last axis."""
        return x * self.factor


class CrossBlock(nn.Module):
    """Time modulates as in AdaLN-Zero; the condition is read token by token through cross-attention, which has no gate.

    Instead its output projection starts at 0, so a fresh block is the identity; or, with `layer_scale`, a `LayerScale` follows it.
    Never both: a branch that is 0 twice has no gradient and stays 0. (The other branches have gates and need neither.)
    """

    def __init__(self, width: int, mixer: nn.Module, n_heads: int, *, layer_scale: bool = False) -> None:
        super().__init__()
        self.modulation = AdaLNZero(width, width, n_sublayers=2)
        self.norm_mixer, self.mixer = plain_norm(width), mixer
        self.norm_cross, self.cross = nn.LayerNorm(width, eps=1e-6), CrossAttention(width, n_heads)
        self.norm_mlp, self.mlp = plain_norm(width), token_mlp(width)
        self.scale_cross = LayerScale(width) if layer_scale else nn.Identity()
        if not layer_scale:
            nn.init.zeros_(self.cross.out.weight)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        c: Float[Tensor, "#cells 1 d"],
        context: Float[Tensor, "#cells k d"],
        mask: Bool[Tensor, "#cells k"],
        layout: Layout = RECTANGULAR,
    ) -> Float[Tensor, "b n d"]:
        """`c` is the time embedding, `context` the projected condition tokens, `mask` says which of them are real."""
        mix, mlp = spread(self.modulation(c), layout)
        x = x + mix.gate * layout.mix(self.mixer, modulate(self.norm_mixer(x), mix.shift, mix.scale))
        x = x + self.scale_cross(layout.by_cell(lambda tokens: self.cross(tokens, context, mask), self.norm_cross(x)))
        return x + mlp.gate * self.mlp(modulate(self.norm_mlp(x), mlp.shift, mlp.scale))


class InContextBlock(nn.Module):
    """A plain pre-norm block: time and condition are tokens among the tokens, put there by the trunk."""

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm_mixer, self.mixer = nn.LayerNorm(width, eps=1e-6), mixer
        self.norm_mlp, self.mlp = nn.LayerNorm(width, eps=1e-6), token_mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"]) -> Float[Tensor, "b n d"]:
        """`mask` is False at condition tokens that are only padding."""
        x = x + self.mixer(self.norm_mixer(x), mask)
        return x + self.mlp(self.norm_mlp(x))
