"""`hybrid`: blocks with different mixers in one trunk, such as a state space with attention in every third block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from jaxtyping import Int
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.backbones.token import Modules, over_genes
from counterflow.errors import ConfigError, near
from counterflow.nn.attention import InducedSetAttention, SelfAttention
from counterflow.nn.longconv import LongConvolution
from counterflow.nn.ssm import BidirectionalSSM
from counterflow.nn.trunk import Conditioning, Trunk

SIZES = {
    "XS": {"width": 64, "depth": 3, "n_heads": 2, "genes_per_token": 4},
    "S": {"width": 384, "depth": 12, "n_heads": 6, "genes_per_token": 1},
    "B": {"width": 768, "depth": 12, "n_heads": 12, "genes_per_token": 1},
    "L": {"width": 1024, "depth": 24, "n_heads": 16, "genes_per_token": 1},
}
MIXERS: dict[str, Callable[[int, int], nn.Module]] = {  # width and heads -> mixer
    "attention": lambda width, n_heads: SelfAttention(width, n_heads),
    "set": lambda width, n_heads: InducedSetAttention(width, n_heads, 16),
    "ssm": lambda width, n_heads: BidirectionalSSM(width, n_heads, 16),
    "longconv": lambda width, n_heads: LongConvolution(width),
}
MAX_TOKENS = 256


def hybrid(
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
    mixers: Sequence[str] | None = None,
    size: str = "XS",
    conditioning: Conditioning = "adaln",
    width: int | None = None,
    depth: int | None = None,
    n_heads: int | None = None,
    genes_per_token: int | None = None,
    feature_order: Int[Tensor, "s"] | None = None,
    modules: Modules = None,
    checkpointing: bool = False,
) -> nn.Module:
    """A network whose blocks take their mixers from a list, in turn. With ``ssm`` or ``longconv`` in it, **the order of features matters.**

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    mixers
        Of the first block, the second, ..., from the start again when they are used up: `"attention"`, `"set"`, `"ssm"`, `"longconv"`.
        None: `"ssm"` and `"attention"`.
    size
        `"XS"`, `"S"`, `"B"` or `"L"`; `width`, `depth` and `n_heads` override its numbers.
    conditioning
        `"adaln"`, `"cross"` or `"in_context"`, see `counterflow.nn.trunk.Trunk`.
    genes_per_token
        Genes (or components) that share a token; None takes those of the size, and as many as keep the tokens at 256 or fewer.
    feature_order
        The permutation in which the features are read; saved with the weights. None reads them as they come.
    modules
        Groups of features as tokens in place of `genes_per_token` at a time; see `over_genes`. `CounterFlow` also takes a GMT file, a
        dict of gene sets, or ``clusters``.
    checkpointing
        Trade time for memory: recompute each block in the backward pass.

    Raises
    ------
    ConfigError
        If a mixer, the size or the conditioning does not exist, or the numbers do not fit together.
    """
    n_features = vector_length(state_shape)
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads)
    turn = cycle(checked_mixers(mixers, chosen["depth"]))
    per_token = genes_per_token or min(n_features, max(chosen["genes_per_token"], math.ceil(n_features / MAX_TOKENS)))
    order = torch.arange(n_features) if feature_order is None else feature_order
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: MIXERS[next(turn)](chosen["width"], chosen["n_heads"]),
        conditioning,
        n_heads=chosen["n_heads"],
        checkpointing=checkpointing,
    )
    return over_genes(n_features, chosen["width"], trunk, modules, per_token, order)


def checked_mixers(mixers: Sequence[str] | None, depth: int) -> Sequence[str]:
    """Names of mixers that exist, no more of them than there are blocks; None: the default, as far as there are blocks."""
    if mixers is None:
        return ("ssm", "attention")[:depth]
    if isinstance(mixers, str) or not isinstance(mixers, Sequence) or not mixers:
        raise ConfigError(f"mixers must be a list of at least one of {', '.join(MIXERS)}, not {mixers!r}")
    for name in mixers:
        if name not in MIXERS:
            raise ConfigError(f"no mixer {name!r}: {near(name, MIXERS)}")
    if len(mixers) > depth:
        raise ConfigError(f"{len(mixers)} mixers for {depth} blocks: raise depth, or leave some out")
    return mixers
