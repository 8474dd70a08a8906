"""Rank-ordered tokens, as encoders such as Geneformer read a cell: which gene is highest, which next. An ablation.

A token says which gene it is and at which rank, never a value, and the tokens come in the order of the ranks. So a velocity cannot change
along the flow's path until two genes swap places, and how large a value is stays unknown (`docs/tokens.md`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.nn.embed import sincos_1d
from counterflow.nn.tokens import GeneHead
from counterflow.types import Condition


class RankBackbone(nn.Module):
    """One token per gene, highest value first; the answers go back to their genes.

    In raw space values are standardised gene by gene, so that a gene ranks high in a cell where it is high *for that gene*.

    Parameters
    ----------
    n_features
        Number of genes S, and of tokens.
    width
        Width of the tokens, even.
    trunk
        See `counterflow.nn.trunk.Trunk`.
    """

    broadcasts = True
    rank: Tensor

    def __init__(self, n_features: int, width: int, trunk: nn.Module) -> None:
        super().__init__()
        self.embedding = Parameter(torch.randn(n_features, width))
        self.register_buffer("rank", 2**0.5 * sincos_1d(torch.arange(n_features), width).float(), persistent=False)  # unit variance
        self.trunk, self.head = trunk, GeneHead(n_features, width)

    def forward(self, x: Float[Tensor, "b s"], t: Float[Tensor, "..."], condition: Condition) -> Float[Tensor, "b s"]:
        """Velocity of the cells `x` at the time `t` under `condition`."""
        order = x.argsort(dim=1, descending=True, stable=True)  # equal values: in the order of the genes
        tokens, c = self.trunk(self.embedding[order] + self.rank, t, condition)
        by_gene = torch.empty_like(tokens).scatter(1, order[..., None].expand_as(tokens), tokens)
        return self.head(by_gene, c).to(x.dtype)
