"""Cells with different numbers of tokens in one batch.

A block does most of its work token by token (norms, modulation, MLP, projections) and only its mixer looks across the tokens of a cell.
`Packed` lays all tokens one after another, so that the first kind of work is spent on real tokens only, and pads around the second kind.
`RECTANGULAR` is the usual batch, where every cell has all tokens; both answer the same calls, and a block does not notice which it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rectangular:
    """Cells that all have the same tokens: (B, N, D)."""

    def spread(self, vector: Float[Tensor, "#b 1 d"]) -> Float[Tensor, "#b 1 d"]:
        """One vector per cell, so that it broadcasts over the cell's tokens."""
        return vector

    def by_cell(self, function: Callable[[Tensor], Tensor], tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Call a function that wants the cells apart."""
        return function(tokens)

    def mix(self, mixer: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Let a mixer look across the tokens of each cell."""
        return mixer(tokens)


RECTANGULAR = Rectangular()


class Packed:
    """Cells one after another: (1, all tokens, D).

    Parameters
    ----------
    lengths
        Number of tokens of each cell, at least 1.
    """

    def __init__(self, lengths: Int[Tensor, "b"]) -> None:
        self.mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # of the padded layout; True = a token
        self.place = self.mask.flatten().nonzero()[:, 0]  # of each token in the padded layout
        self.cell = self.place // self.mask.shape[1]

    def pad(self, tokens: Float[Tensor, "1 n d"]) -> Float[Tensor, "b m d"]:
        """Cells apart, zeros where there is no token."""
        n_cells, longest = self.mask.shape
        padded = tokens.new_zeros(n_cells * longest, tokens.shape[-1]).index_copy(0, self.place, tokens[0])
        return padded.view(n_cells, longest, -1)

    def pack(self, padded: Float[Tensor, "b m d"]) -> Float[Tensor, "1 n d"]:
        """The way back."""
        return padded.flatten(0, 1)[self.place][None]

    def spread(self, vector: Float[Tensor, "#b 1 d"]) -> Float[Tensor, "1 n d"]:
        """One vector per cell, repeated for each of its tokens."""
        return vector.expand(len(self.mask), -1, -1)[self.cell, 0][None]

    def by_cell(self, function: Callable[[Tensor], Tensor], tokens: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 n d"]:
        """Call a function that wants the cells apart."""
        return self.pack(function(self.pad(tokens)))

    def mix(self, mixer: nn.Module, tokens: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 n d"]:
        """Let a mixer look across the tokens of each cell; it takes a key mask."""
        return self.by_cell(lambda cells: mixer(cells, self.mask), tokens)


Layout = Rectangular | Packed
