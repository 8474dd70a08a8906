"""From a vector of features (genes, components) to tokens, and back.

A token holds `genes_per_token` genes: 1 makes *gene tokens*, more make *module tokens*. Both are the same formula,
a learned row per token plus, for each of its genes, the value times a learned direction.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.nn.blocks import plain_norm
from counterflow.nn.modulation import FiLM


class GeneLayout(nn.Module):
    """Which gene sits in which token. The order is a buffer, so that it is saved with the weights.

    Parameters
    ----------
    n_features
        Number of genes S.
    genes_per_token
        Number of genes in a token, k; the last token is padded.
    order
        A permutation of the genes: token 0 holds the genes `order[:k]`. None keeps the genes as they come.
    """

    order: Tensor | None

    def __init__(self, n_features: int, genes_per_token: int = 1, order: Int[Tensor, "s"] | None = None) -> None:
        super().__init__()
        if not 1 <= genes_per_token <= n_features:
            raise ConfigError(f"genes_per_token must be between 1 and the number of features {n_features}, not {genes_per_token}")
        if order is not None and not order.is_meta and not torch.equal(order.sort().values, torch.arange(n_features, device=order.device)):
            raise ConfigError(f"the order of the features must be a permutation of 0 .. {n_features - 1}, each once")
        self.genes_per_token = genes_per_token
        self.n_tokens = math.ceil(n_features / genes_per_token)
        self.register_buffer("order", None if order is None else order.detach().clone().long())

    def forward(self, features: Int[Tensor, "f"] | None) -> tuple[Int[Tensor, "f"] | None, Int[Tensor, "f"] | None]:
        """Which columns of x to take, in token order, and which row of the token tables each belongs to; None = all, as they are."""
        if features is None:
            return self.order, None
        if self.genes_per_token > 1:
            raise ConfigError(f"`features` needs one gene per token: this model was built with genes_per_token={self.genes_per_token}")
        if self.order is None:
            return None, features
        position = self.order.argsort()[features]
        columns = position.argsort()
        return columns, position[columns]


class GeneTokenizer(nn.Module):
    """Genes to tokens: `token = E + sum over its genes of value * W_gene`. There are no positions: E says which token it is.

    E and W start at the scale of the values themselves (unit variance): with the small rows that are usual for positions, a token's value
    drowns out which gene it is, and short fits stall.

    Parameters
    ----------
    n_features, genes_per_token, order
        See `GeneLayout`.
    width
        Width of the tokens.
    """

    def __init__(self, n_features: int, width: int, genes_per_token: int = 1, order: Int[Tensor, "s"] | None = None) -> None:
        super().__init__()
        self.layout = GeneLayout(n_features, genes_per_token, order)
        self.embedding = Parameter(torch.randn(self.layout.n_tokens, width))
        self.direction = Parameter(torch.randn(self.layout.n_tokens, genes_per_token, width) / math.sqrt(genes_per_token))

    def forward(self, x: Float[Tensor, "b s"], features: Int[Tensor, "s"] | None = None) -> Float[Tensor, "b n d"]:
        """Tokens of the cells `x`; `features` are the indices of the genes in `x` when it holds a subset or another order."""
        columns, rows = self.layout(features)
        embedding, direction = (self.embedding, self.direction) if rows is None else (self.embedding[rows], self.direction[rows])
        values = x if columns is None else x[:, columns]
        values = F.pad(values, (0, -values.shape[1] % self.layout.genes_per_token))
        values = rearrange(values, "b (n k) -> b n k", k=self.layout.genes_per_token)
        if self.layout.genes_per_token == 1:
            return embedding + values * direction[:, 0]
        return embedding + torch.einsum("bnk,nkd->bnd", values, direction)


class GeneHead(nn.Module):
    """Tokens to genes: modulated norm, then for every token its own linear to its genes. Starts at exactly 0; tied to nothing.

    A linear shared by all tokens would have to read a different set of genes from each with the same weights.

    Parameters
    ----------
    n_features, genes_per_token, order
        See `GeneLayout`; the same as the tokenizer's.
    width
        Width of the tokens.
    """

    def __init__(self, n_features: int, width: int, genes_per_token: int = 1, order: Int[Tensor, "s"] | None = None) -> None:
        super().__init__()
        self.layout = GeneLayout(n_features, genes_per_token, order)
        self.n_features = n_features
        self.norm = plain_norm(width)
        self.film = FiLM(width, width)
        self.weight = Parameter(torch.zeros(self.layout.n_tokens, width, genes_per_token))
        self.bias = Parameter(torch.zeros(self.layout.n_tokens, genes_per_token))

    def forward(
        self, tokens: Float[Tensor, "b n d"], c: Float[Tensor, "#b 1 d"], features: Int[Tensor, "s"] | None = None
    ) -> Float[Tensor, "b s"]:
        """One value per gene, in the order in which the tokenizer met them."""
        columns, rows = self.layout(features)
        weight, bias = (self.weight, self.bias) if rows is None else (self.weight[rows], self.bias[rows])
        values = torch.einsum("bnd,ndk->bnk", self.film(self.norm(tokens), c), weight) + bias
        values = rearrange(values, "b n k -> b (n k)")
        values = values[:, : self.n_features] if rows is None else values  # what pads the last token
        return values if columns is None else torch.empty_like(values).index_copy(1, columns, values)
