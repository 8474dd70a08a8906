"""`set`: genes as a set, attention through a few learned points (Set Transformer, arXiv 1810.00825). Linear in the number of genes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from counterflow.backbones.sizes import pick_size, vector_length
from counterflow.backbones.token import Modules, over_genes
from counterflow.nn.attention import InducedSetAttention
from counterflow.nn.trunk import Conditioning, Trunk

SIZES = {
    "XS": {"width": 64, "depth": 2, "n_heads": 2, "n_inducing": 8},  # benchmarks/search_backbones.py
    "S": {"width": 384, "depth": 12, "n_heads": 6, "n_inducing": 64},
    "B": {"width": 768, "depth": 12, "n_heads": 12, "n_inducing": 64},
    "L": {"width": 1024, "depth": 24, "n_heads": 16, "n_inducing": 64},
}


def set_attention(
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
    size: str = "XS",
    conditioning: Conditioning = "adaln",
    width: int | None = None,
    depth: int | None = None,
    n_heads: int | None = None,
    n_inducing: int | None = None,
    modules: Modules = None,
    gene_features: Float[Tensor, "s p"] | None = None,
    qk_norm: bool = False,
    checkpointing: bool = False,
) -> nn.Module:
    """A permutation-equivariant network over the genes of a cell, one token per gene.

    Its `forward` takes `features=`, the indices of the genes in `x`, so the same weights serve any subset and any order of the genes.

    Parameters
    ----------
    state_shape
        Shape of the state, `(S,)`.
    condition_dim
        Width of the condition.
    size
        `"XS"`, `"S"`, `"B"` or `"L"`; `width`, `depth`, `n_heads` and `n_inducing` override its numbers.
    conditioning
        `"adaln"`, `"cross"` or `"in_context"`, see `counterflow.nn.trunk.Trunk`.
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
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads, n_inducing=n_inducing)
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: InducedSetAttention(chosen["width"], chosen["n_heads"], chosen["n_inducing"], qk_norm=qk_norm),
        conditioning,
        n_heads=chosen["n_heads"],
        checkpointing=checkpointing,
    )
    return over_genes(n_features, chosen["width"], trunk, modules, gene_features=gene_features)
