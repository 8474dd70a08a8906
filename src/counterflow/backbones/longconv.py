"""`longconv`: long convolutions with implicit filters (Hyena, arXiv 2302.10866) over module tokens in a stored order."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.backbones.token import Modules, over_genes
from counterflow.nn.longconv import LongConvolution
from counterflow.nn.trunk import Conditioning, Trunk

SIZES = {
    "XS": {"width": 64, "depth": 3, "n_heads": 2, "genes_per_token": 4},
    "S": {"width": 384, "depth": 12, "n_heads": 6, "genes_per_token": 1},
    "B": {"width": 768, "depth": 12, "n_heads": 12, "genes_per_token": 1},
    "L": {"width": 1024, "depth": 24, "n_heads": 16, "genes_per_token": 1},
}
MAX_TOKENS = 1024  # what a longer sequence costs is little more than its length; but genes have no natural one


def longconv(
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
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
    """A convolutional network over the genes of a cell. **Its output depends on the order of the features.**

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    size
        `"XS"`, `"S"`, `"B"` or `"L"`; `width`, `depth` and `n_heads` (of the cross-attention) override its numbers.
    conditioning
        `"adaln"`, `"cross"` or `"in_context"`, see `counterflow.nn.trunk.Trunk`.
    genes_per_token
        Genes (or components) that share a token; None takes those of the size, and as many as keep the tokens at 1,024 or fewer.
    feature_order
        The permutation in which the features are read, for example the leaf order of a correlation clustering. Saved with the weights.
        None reads them as they come.
    modules
        Groups of features as tokens in place of `genes_per_token` at a time; see `over_genes`. `CounterFlow` also takes a GMT file, a
        dict of gene sets, or ``clusters``.
    checkpointing
        Trade time for memory: recompute each block in the backward pass.

    Raises
    ------
    ConfigError
        If the size or the conditioning does not exist, or the numbers do not fit together.
    """
    n_features = vector_length(state_shape)
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads)
    per_token = genes_per_token or min(n_features, max(chosen["genes_per_token"], math.ceil(n_features / MAX_TOKENS)))
    order = torch.arange(n_features) if feature_order is None else feature_order
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: LongConvolution(chosen["width"]),
        conditioning,
        n_heads=chosen["n_heads"],
        checkpointing=checkpointing,
    )
    return over_genes(n_features, chosen["width"], trunk, modules, per_token, order)
