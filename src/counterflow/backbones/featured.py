"""Genes that are known by what they are like: a network over a set of genes that also answers for genes it never saw in training.

A gene's token and its answer are made of two parts: a linear function of its features (loadings on the programs of control cells, or a
table of yours) and an identity of its own, which a gene that was not in training does not have. So that the first part learns to stand
alone, the identities of half of the genes are hidden in training, other genes in every cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.nn.blocks import plain_norm
from counterflow.nn.init import xavier_linear, zero_linear
from counterflow.nn.modulation import FiLM
from counterflow.types import Condition


class FeaturedBackbone(nn.Module):
    """One token per gene, `E + value * W`, and an answer per gene, `a . token + b`; E, W, a and b are features' part plus identity.

    Parameters
    ----------
    features
        One row of numbers per gene; a row of zeros where nothing is known. A buffer, so that it is saved with the weights. Only the
        direction of a row counts.
    width
        Width of the tokens.
    trunk
        Over a set: see `counterflow.nn.trunk.Trunk`.
    """

    broadcasts = True
    features: Tensor
    PER_GENE = ("features", "embedding", "direction", "weight", "bias")
    """What has a row for each gene."""

    def __init__(self, features: Float[Tensor, "s p"], width: int, trunk: nn.Module) -> None:
        super().__init__()
        if features.ndim != 2 or not features.shape[1] or not features.isfinite().all():
            raise ConfigError(f"gene_features must be a table of finite numbers, a row per gene, not of shape {tuple(features.shape)}")
        n_genes, n_features = features.shape
        self.register_buffer("features", features.detach().clone().float())
        self.token = xavier_linear(n_features, 2 * width)  # E and W of a gene
        self.answer = zero_linear(n_features, width + 1)  # a and b
        self.embedding, self.direction = Parameter(torch.randn(n_genes, width)), Parameter(torch.randn(n_genes, width))
        self.weight, self.bias = Parameter(torch.zeros(n_genes, width)), Parameter(torch.zeros(n_genes))
        self.trunk, self.norm, self.film = trunk, plain_norm(width), FiLM(width, width)

    def forward(self, x: Float[Tensor, "b s"], t: Float[Tensor, "..."], condition: Condition) -> Float[Tensor, "b s"]:
        """Velocity of the cells `x` at the time `t` under `condition`."""
        like = F.normalize(self.features.to(self.embedding.dtype), dim=1) * self.features.shape[1] ** 0.5
        (E, W), (a, b) = self.token(like).chunk(2, dim=1), self.answer(like).split([self.embedding.shape[1], 1], dim=1)
        own = shown(t, x).to(x.dtype) if self.training else x.new_ones(1, 1)  # B x S
        tokens = E + x[..., None] * W + own[..., None] * (self.embedding + x[..., None] * self.direction)
        tokens, c = self.trunk(tokens, t, condition)
        tokens = self.film(self.norm(tokens), c)
        by_features = torch.einsum("bsd,sd->bs", tokens, a) + b[:, 0]
        return (by_features + own * (torch.einsum("bsd,sd->bs", tokens, self.weight) + self.bias)).to(x.dtype)


def shown(t: Float[Tensor, "..."], x: Float[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
    """Whose identity is shown in which cell of a training step: half of them.

    A hash of each cell's random time and the gene's number, so that it is the same on every device, in every chunk, and in a resumed run.
    """
    cell = (t.reshape(-1, 1) * 2**20).long() + 1
    gene = 2 * torch.arange(x.shape[1], device=x.device) + 1
    return (cell * gene * 40503 >> 15) % 2 == 1
