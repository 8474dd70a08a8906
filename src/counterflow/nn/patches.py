"""From an image to tokens, one per square patch, and back.

The two reshapes differ on purpose: a patch is read as (channel, row, column) and written as (row, column, channel), as in the
reference weights (DiT, arXiv 2212.09748).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError, near
from counterflow.nn.blocks import plain_norm
from counterflow.nn.embed import sincos_1d, sincos_2d
from counterflow.nn.init import xavier_linear, zero_linear
from counterflow.nn.modulation import FiLM

Positions = Literal["sincos_2d", "sincos_1d", "learned"]
Grid = tuple[int, int]

FIXED_POSITIONS: dict[str, Callable[[Grid, int], Tensor]] = {
    "sincos_2d": lambda grid, width: sincos_2d(*grid, width),
    "sincos_1d": lambda grid, width: sincos_1d(torch.arange(grid[0] * grid[1], dtype=torch.float64), width).float(),
}


def patch_grid(height: int, width: int, patch: int) -> Grid:
    """Rows and columns of patches in an image of `height` x `width` pixels.

    Raises
    ------
    ConfigError
        If the patches do not tile the image.
    """
    if patch < 1 or height % patch or width % patch:
        raise ConfigError(f"an image of {height} x {width} cannot be cut into patches of {patch} x {patch}: `patch` must divide both sides")
    return height // patch, width // patch


class PatchTokenizer(nn.Module):
    """Patches to tokens: `token = W patch + b + position`, row by row.

    Parameters
    ----------
    image_shape
        Channels, height and width.
    width
        Width of the tokens.
    patch
        Side of a patch in pixels.
    positions
        `"sincos_2d"`: column in the first half of the features, row in the second. `"sincos_1d"`: the index in reading order.
        Both are fixed, and saved with the weights. `"learned"`: a trained row per token.
    """

    positions: Tensor

    def __init__(self, image_shape: tuple[int, int, int], width: int, patch: int, positions: Positions = "sincos_2d") -> None:
        super().__init__()
        n_channels, rows, columns = image_shape
        self.patch, self.width = patch, width
        self.grid = patch_grid(rows, columns, patch)
        self.proj = xavier_linear(n_channels * patch**2, width)
        if positions == "learned":
            self.positions = Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        elif positions in FIXED_POSITIONS:
            self.register_buffer("positions", FIXED_POSITIONS[positions](self.grid, width))
        else:
            raise ConfigError(f"no positions {positions!r}: {near(positions, [*FIXED_POSITIONS, 'learned'])}")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """One token per patch, row-major."""
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        return self.proj(patches) + self.positions


class PatchHead(nn.Module):
    """Tokens to pixels: modulated norm, then one linear shared by all patches. Starts at exactly 0.

    Parameters
    ----------
    image_shape
        Channels, height and width of what comes back.
    width
        Width of the tokens.
    patch
        Side of a patch in pixels.
    unused_channels
        Further channels that the linear has, as trained weights may, and that are not given out.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, patch: int, unused_channels: int = 0) -> None:
        super().__init__()
        self.n_channels, rows, columns = image_shape
        self.patch = patch
        self.grid = patch_grid(rows, columns, patch)
        self.norm = plain_norm(width)
        self.film = FiLM(width, width)
        self.linear = zero_linear(width, (self.n_channels + unused_channels) * patch**2)

    def forward(self, tokens: Float[Tensor, "b n d"], c: Float[Tensor, "#b 1 d"]) -> Float[Tensor, "b c h w"]:
        """Put the patches back where the tokenizer took them."""
        patches = self.linear(self.film(self.norm(tokens), c))
        image = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.grid[0], p=self.patch, q=self.patch)
        return image[:, : self.n_channels]
