"""`ssm`: a bidirectional selective state-space model (Mamba-2, arXiv 2405.21060) over module tokens, or over genes as a set."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.backbones.token import Modules, over_genes
from counterflow.nn.ssm import BidirectionalSSM
from counterflow.nn.trunk import Conditioning, Trunk

SIZES = {
    "XS": {"width": 64, "depth": 3, "n_heads": 4, "state": 16, "genes_per_token": 4},  # benchmarks/search_backbones.py
    "S": {"width": 384, "depth": 12, "n_heads": 6, "state": 64, "genes_per_token": 1},
    "B": {"width": 768, "depth": 12, "n_heads": 12, "state": 64, "genes_per_token": 1},
    "L": {"width": 1024, "depth": 24, "n_heads": 16, "state": 64, "genes_per_token": 1},
}
MAX_TOKENS = 128  # a few hundred modules at most: genes have no natural sequence, and a long one would pretend they have


def ssm(
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
    size: str = "XS",
    conditioning: Conditioning = "adaln",
    width: int | None = None,
    depth: int | None = None,
    n_heads: int | None = None,
    state: int | None = None,
    genes_per_token: int | None = None,
    feature_order: Int[Tensor, "s"] | None = None,
    modules: Modules = None,
    gene_features: Float[Tensor, "s p"] | None = None,
    order: Literal["stored", "none"] = "stored",
    checkpointing: bool = False,
) -> nn.Module:
    """A state-space model over the genes of a cell. With `order="stored"` **its output depends on the order of the features.**

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    size
        `"XS"`, `"S"`, `"B"` or `"L"`; `width`, `depth`, `n_heads` and `state` override its numbers.
    conditioning
        `"adaln"`, `"cross"` or `"in_context"`, see `counterflow.nn.trunk.Trunk`.
    genes_per_token
        Genes (or components) that share a token; None takes those of the size, and as many as keep the tokens at 128 or fewer, and 1
        with `order="none"`.
    feature_order
        The permutation in which the features are read, for example the leaf order of a correlation clustering. Saved with the weights.
        None reads them as they come. Without effect with `order="none"` at one gene per token.
    modules
        Groups of features as tokens in place of `genes_per_token` at a time; see `over_genes`. `CounterFlow` also takes a GMT file, a
        dict of gene sets, or ``clusters``.
    gene_features
        One row of numbers per gene, for a network that also answers for genes it never saw; see `counterflow.backbones.featured`.
        `CounterFlow` also takes ``coexpression``, or a DataFrame indexed by gene.
    order
        `"stored"` reads the tokens as a sequence, from both ends. `"none"` forgets nothing and is exactly permutation-equivariant:
        linear attention over a set.
    checkpointing
        Trade time for memory: recompute each block in the backward pass.

    Raises
    ------
    ConfigError
        If the size, the conditioning or the order does not exist, or the numbers do not fit together.
    """
    n_features = vector_length(state_shape)
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads, state=state)
    fewest = 1 if order == "none" else min(n_features, max(chosen["genes_per_token"], math.ceil(n_features / MAX_TOKENS)))
    per_token = genes_per_token or fewest
    layout = None
    if order != "none" or per_token > 1:  # kept also when it is the plain one, so that saved weights always carry their order
        layout = torch.arange(n_features) if feature_order is None else feature_order
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: BidirectionalSSM(chosen["width"], chosen["n_heads"], chosen["state"], order),
        conditioning,
        n_heads=chosen["n_heads"],
        checkpointing=checkpointing,
    )
    return over_genes(n_features, chosen["width"], trunk, modules, per_token, layout, gene_features)
