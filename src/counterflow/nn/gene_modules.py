"""Modules of genes as tokens: pathways, clusters, any groups. A gene may be in several, and every gene is in at least one.

`nn/tokens.py` cuts the genes into pieces of equal size; here the groups are given, may overlap, and differ in size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.nn.blocks import plain_norm
from counterflow.nn.modulation import FiLM


class ModuleLayout(nn.Module):
    """Which genes are in which token. The table is a buffer: a saved network carries its modules.

    Parameters
    ----------
    n_features
        Number of genes S.
    members
        One row of gene numbers per module, padded with -1.

    Raises
    ------
    ConfigError
        If a number is no gene, a module is empty or names a gene twice, or a gene is in no module.
    """

    members: Tensor

    def __init__(self, n_features: int, members: Int[Tensor, "n k"]) -> None:
        super().__init__()
        members = members.detach().clone().long()
        real = members >= 0
        if members.ndim != 2 or not members.numel() or members.max() >= n_features or members.min() < -1 or not real.any(1).all():
            raise ConfigError(f"modules hold genes 0 .. {n_features - 1}, at least one each (-1 pads a row of the table)")
        slots = torch.arange(len(members), device=members.device)[:, None] * n_features + members
        if len(slots[real].unique()) < real.sum():
            raise ConfigError("a module names a gene twice")
        n_modules = torch.bincount(members[real], minlength=n_features)
        if (n_modules == 0).any():
            raise ConfigError(f"{int((n_modules == 0).sum())} of {n_features} genes are in no module: give them one, or they cannot change")
        self.n_features = n_features
        self.register_buffer("members", members)

    @property
    def sizes(self) -> Int[Tensor, "n"]:
        """How many genes each module has."""
        return (self.members >= 0).sum(1)

    def take(self, x: Float[Tensor, "b s"]) -> Float[Tensor, "b n k"]:
        """The values of every module's genes; 0 where there is none."""
        return x[:, self.members.clamp(min=0)] * (self.members >= 0)

    def mean(self, values: Float[Tensor, "b n k"]) -> Float[Tensor, "b s"]:
        """For every gene, the mean of what its modules say."""
        gene, real = self.members.clamp(min=0).flatten(), (self.members >= 0).flatten().to(values.dtype)
        n_modules = real.new_zeros(self.n_features).index_add(0, gene, real)
        said = values.flatten(1) * real
        return said.new_zeros(len(said), self.n_features).index_add(1, gene, said) / n_modules


class ModuleTokenizer(nn.Module):
    """Modules to tokens: `token = E + sum over its genes of value * W_gene`, with a W of its own for every gene in every module.

    Parameters
    ----------
    n_features, members
        See `ModuleLayout`.
    width
        Width of the tokens.
    """

    def __init__(self, n_features: int, width: int, members: Int[Tensor, "n k"]) -> None:
        super().__init__()
        self.layout = ModuleLayout(n_features, members)
        n_tokens, largest = members.shape
        self.embedding = Parameter(torch.randn(n_tokens, width))
        size = self.layout.sizes[:, None, None].to(self.embedding.device)
        self.direction = Parameter(torch.randn(n_tokens, largest, width) / size.sqrt())  # values bring a token unit variance

    def forward(self, x: Float[Tensor, "b s"], features: Int[Tensor, "s"] | None = None) -> Float[Tensor, "b n d"]:
        """Tokens of the cells `x`, which holds all genes."""
        if features is not None:
            raise ConfigError("`features` needs one gene per token: this network reads modules of genes")
        return self.embedding + torch.einsum("bnk,nkd->bnd", self.layout.take(x), self.direction)


class ModuleHead(nn.Module):
    """Tokens to genes: modulated norm, every module its own linear to its genes, and for a gene in several modules the mean.

    How much each of them counts is learnt all the same: it is in the scale of their weights. Starts at exactly 0.

    Parameters
    ----------
    n_features, members
        See `ModuleLayout`; the same as the tokenizer's.
    width
        Width of the tokens.
    """

    def __init__(self, n_features: int, width: int, members: Int[Tensor, "n k"]) -> None:
        super().__init__()
        self.layout = ModuleLayout(n_features, members)
        n_tokens, largest = members.shape
        self.norm = plain_norm(width)
        self.film = FiLM(width, width)
        self.weight = Parameter(torch.zeros(n_tokens, width, largest))
        self.bias = Parameter(torch.zeros(n_features))

    def forward(self, tokens: Float[Tensor, "b n d"], c: Float[Tensor, "#b 1 d"]) -> Float[Tensor, "b s"]:
        """One value per gene."""
        return self.layout.mean(torch.einsum("bnd,ndk->bnk", self.film(self.norm(tokens), c), self.weight)) + self.bias
