"""`dit`: full self-attention over gene or module tokens (DiT, arXiv 2212.09748, with genes for patches)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.backbones.token import Modules, over_genes
from counterflow.nn.attention import SelfAttention
from counterflow.nn.trunk import Conditioning, Trunk

SIZES = {
    "XS": {"width": 64, "depth": 2, "n_heads": 2, "genes_per_token": 4},  # a screen on a CPU: benchmarks/search_backbones.py
    "S": {"width": 384, "depth": 12, "n_heads": 6, "genes_per_token": 1},  # from here on as in the paper
    "B": {"width": 768, "depth": 12, "n_heads": 12, "genes_per_token": 1},
    "L": {"width": 1024, "depth": 24, "n_heads": 16, "genes_per_token": 1},
}
MAX_TOKENS = 256  # attention is quadratic in the tokens


def dit(
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
    gene_features: Float[Tensor, "s p"] | None = None,
    qk_norm: bool = False,
    checkpointing: bool = False,
) -> nn.Module:
    """A transformer over the genes of a cell.

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    size
        `"XS"`, `"S"`, `"B"` or `"L"`; `width`, `depth` and `n_heads` override its numbers.
    conditioning
        `"adaln"`, `"cross"` or `"in_context"`, see `counterflow.nn.trunk.Trunk`.
    genes_per_token
        Genes (or components) that share a token; None takes those of the size, and as many as keep the tokens at 256 or fewer.
    feature_order
        A permutation of the features that puts together those that should share a token; without effect at one gene per token.
    modules
        Groups of features as tokens in place of `genes_per_token` at a time; see `over_genes`. `CounterFlow` also takes a GMT file, a
        dict of gene sets, or ``clusters``.
    gene_features
        One row of numbers per gene, for a network that also answers for genes it never saw; see `counterflow.backbones.featured`.
        `CounterFlow` also takes ``coexpression``, or a DataFrame indexed by gene.
    qk_norm
        Normalise queries and keys: keeps attention in bounds when training in bfloat16, or with a high learning rate.
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
    order = None
    if per_token > 1:  # kept also when it is the plain one, so that saved weights always carry the order they were trained in
        order = torch.arange(n_features) if feature_order is None else feature_order
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: SelfAttention(chosen["width"], chosen["n_heads"], qk_norm=qk_norm),
        conditioning,
        n_heads=chosen["n_heads"],
        checkpointing=checkpointing,
    )
    return over_genes(n_features, chosen["width"], trunk, modules, per_token, order, gene_features)
