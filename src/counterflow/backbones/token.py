"""Every token model: tokenizer, trunk, head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterflow.backbones.featured import FeaturedBackbone
from counterflow.backbones.rank import RankBackbone
from counterflow.errors import ConfigError
from counterflow.nn.gene_modules import ModuleHead, ModuleTokenizer
from counterflow.nn.packing import Packed
from counterflow.nn.tokens import GeneHead, GeneTokenizer
from counterflow.types import Condition

Modules = Int[Tensor, "n k"] | Literal["rank"] | None


class TokenBackbone(nn.Module):
    """A backbone made of three parts; what kind of model it is depends on the tokenizer and on the trunk's mixer.

    Parameters
    ----------
    tokenizer
        State to tokens, for example `counterflow.nn.tokens.GeneTokenizer`.
    trunk
        `trunk(tokens, t, condition)` gives tokens and the vector the head modulates by, see `counterflow.nn.trunk.Trunk`.
    head
        Tokens and that vector to the state's shape.
    """

    broadcasts = True

    def __init__(self, tokenizer: nn.Module, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tokenizer, self.trunk, self.head = tokenizer, trunk, head

    def forward(
        self, x: Float[Tensor, "b *s"], t: Float[Tensor, "..."], condition: Condition, features: Int[Tensor, "f"] | None = None
    ) -> Float[Tensor, "b *s"]:
        """Velocity of the cells `x` at the time `t` (one per cell, or a single one) under `condition`.

        `features` are the indices of the genes in `x`, for tokenizers that can take a subset of the genes or another order of them.
        """
        which = () if features is None else (features,)
        tokens, c = self.trunk(self.tokenizer(x, *which), t, condition)
        return self.head(tokens, c, *which).to(x.dtype)

    def panels(
        self, x: Sequence[Float[Tensor, "s"]], t: Float[Tensor, "..."], condition: Condition, features: Sequence[Int[Tensor, "s"]]
    ) -> list[Float[Tensor, "s"]]:
        """Velocities of cells that were measured on panels of their own, in one packed batch (see `counterflow.nn.packing`).

        Parameters
        ----------
        x
            The states, one vector per cell.
        t, condition
            As in `forward`, one row per cell (or a single one).
        features
            For each cell, the indices of the genes in its `x`.

        Raises
        ------
        ConfigError
            If the network reads the genes in a stored order, or several of them in one token.
        """
        if not isinstance(self.tokenizer, GeneTokenizer) or self.tokenizer.layout.order is not None:
            raise ConfigError("cells of different panels have no common order: use the backbone 'set', 'dit' or 'ssm' with order='none', "
                              "at genes_per_token=1")  # fmt: skip
        lengths = [len(values) for values in x]
        layout, genes = Packed(torch.tensor(lengths, device=x[0].device)), torch.cat(list(features))
        tokens, c = self.trunk(self.tokenizer(torch.cat(list(x))[None], genes), t, condition, layout)
        velocity = self.head(tokens, layout.spread(c), genes)[0]
        return list(velocity.to(x[0].dtype).split(lengths))


def over_genes(
    n_features: int,
    width: int,
    trunk: nn.Module,
    modules: Modules = None,
    genes_per_token: int = 1,
    order: Int[Tensor, "s"] | None = None,
    gene_features: Float[Tensor, "s p"] | None = None,
) -> nn.Module:
    """A backbone over genes or groups of them: what every factory of token models ends with.

    Parameters
    ----------
    modules
        None: `genes_per_token` genes at a time, in the given order. A table of gene numbers: see `counterflow.nn.gene_modules`.
        ``rank``: see `counterflow.backbones.rank`.
    gene_features
        One row per gene: see `counterflow.backbones.featured`.
    """
    if gene_features is not None:
        if not isinstance(gene_features, Tensor):
            raise ConfigError(f"a network takes gene_features as a table of numbers, not {gene_features!r}: names are for CounterFlow")
        if modules is not None or genes_per_token > 1 or order is not None:
            raise ConfigError("gene_features needs genes as a set: use 'set', 'dit' with genes_per_token=1, or 'ssm' with order='none'")
        return FeaturedBackbone(gene_features, width, trunk)
    if modules is None:
        return TokenBackbone(
            GeneTokenizer(n_features, width, genes_per_token, order), trunk, GeneHead(n_features, width, genes_per_token, order)
        )
    if isinstance(modules, Tensor):
        return TokenBackbone(ModuleTokenizer(n_features, width, modules), trunk, ModuleHead(n_features, width, modules))
    if modules == "rank":
        return RankBackbone(n_features, width, trunk)
    raise ConfigError(f"a network takes modules as a table of gene numbers or 'rank', not {modules!r}: files and names are for CounterFlow")
