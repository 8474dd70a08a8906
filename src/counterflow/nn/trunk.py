"""The trunk every token model shares: tokens in, tokens out, under a time and a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from counterflow.errors import ConfigError, near
from counterflow.nn.blocks import AdaLNBlock, CrossBlock, InContextBlock, PlainAdaLNBlock
from counterflow.nn.embed import TimeEmbedding
from counterflow.nn.init import xavier_linear
from counterflow.nn.packing import RECTANGULAR, Layout, Packed
from counterflow.types import Condition

Conditioning = Literal["adaln", "adaln_plain", "cross", "cross_layerscale", "in_context"]


class Trunk(nn.Module):
    """Embed the time, project the condition once, run the blocks.

    Parameters
    ----------
    width
        Width of the tokens.
    depth
        Number of blocks.
    condition_dim
        Width of the condition as the encoder gives it. None: it has the trunk's width, and is taken as it is.
    make_mixer
        Called once per block; returns a module from tokens to tokens. With `conditioning="in_context"` the mixer also takes a key mask.
    conditioning
        `"adaln"`: time + pooled condition modulate every block. `"cross"`: time modulates, blocks attend to the condition tokens.
        `"in_context"`: time and condition tokens are prepended, and stripped again at the end. Two variants for comparison:
        `"adaln_plain"` has no gates, `"cross_layerscale"` opens the cross-attention by a small learned factor instead of from 0.
    n_heads
        Heads of the cross-attention; not used otherwise.
    embed_time
        How the time is embedded; a `TimeEmbedding` of the default scale when None.
    checkpointing
        Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        condition_dim: int | None,
        make_mixer: Callable[[], nn.Module],
        conditioning: Conditioning = "adaln",
        *,
        n_heads: int = 1,
        embed_time: TimeEmbedding | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        make_block: dict[str, Callable[[], nn.Module]] = {
            "adaln": lambda: AdaLNBlock(width, make_mixer()),
            "adaln_plain": lambda: PlainAdaLNBlock(width, make_mixer()),
            "cross": lambda: CrossBlock(width, make_mixer(), n_heads),
            "cross_layerscale": lambda: CrossBlock(width, make_mixer(), n_heads, layer_scale=True),
            "in_context": lambda: InContextBlock(width, make_mixer()),
        }
        if conditioning not in make_block:
            raise ConfigError(f"no conditioning {conditioning!r}: {near(conditioning, make_block)}")
        self.conditioning = conditioning
        self.checkpointing = checkpointing
        self.embed_time = embed_time or TimeEmbedding(width)
        self.project_condition = nn.Identity() if condition_dim is None else xavier_linear(condition_dim, width)
        self.blocks = nn.ModuleList(make_block[conditioning]() for _ in range(depth))

    def forward(
        self, tokens: Float[Tensor, "b n d"], t: Float[Tensor, "..."], condition: Condition, layout: Layout = RECTANGULAR
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b_or_1 1 d"]]:
        """The tokens after the last block, and the vector by which the head modulates.

        That vector is time + condition for the two kinds of AdaLN and the time alone otherwise. A single `t` and a condition of batch 1
        are embedded once and broadcast over the cells. With a `Packed` layout `tokens` are those of all cells one after another.
        """
        time = self.embed_time(t)[:, None]
        if self.conditioning in ("adaln", "adaln_plain"):
            c = time + self.project_condition(condition.pooled)[:, None]
            return self.run_blocks(tokens, c, layout), c
        context = self.project_condition(condition.tokens)
        if self.conditioning in ("cross", "cross_layerscale"):
            return self.run_blocks(tokens, time, context, condition.mask, layout), time
        if isinstance(layout, Packed):  # in-context tokens belong to every cell: here the cells are kept apart throughout
            sequence, mask = prepend(layout.pad(tokens), time, context, condition.mask, layout.mask)
            return layout.pack(self.run_blocks(sequence, mask)[:, -layout.mask.shape[1] :]), time
        sequence, mask = prepend(tokens, time, context, condition.mask)
        return self.run_blocks(sequence, mask)[:, -tokens.shape[1] :], time

    def run_blocks(self, tokens: Float[Tensor, "b n d"], *signals: Tensor | Layout) -> Float[Tensor, "b n d"]:
        """Pass the tokens through every block; `signals` is what this kind of block listens to."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *signals, use_reentrant=False)
            else:
                tokens = block(tokens, *signals)
        return tokens


def prepend(
    tokens: Float[Tensor, "b n d"],
    time: Float[Tensor, "#b 1 d"],
    context: Float[Tensor, "#b k d"],
    mask: Bool[Tensor, "#b k"],
    token_mask: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
    """The sequence [time | condition tokens | tokens] and its key mask; `mask` and `token_mask` are False at padding."""
    n_cells, n_tokens, _ = tokens.shape
    mask = mask.expand(n_cells, -1)
    sequence = torch.cat([time.expand(n_cells, -1, -1), context.expand(n_cells, -1, -1), tokens], dim=1)
    token_mask = mask.new_ones(n_cells, n_tokens) if token_mask is None else token_mask
    return sequence, torch.cat([mask.new_ones(n_cells, 1), mask, token_mask], dim=1)
