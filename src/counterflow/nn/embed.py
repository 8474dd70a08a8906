"""Times and positions as vectors the network can read."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterflow.errors import ConfigError
from counterflow.nn.init import xavier_linear


def sinusoidal_features(
    t: Float[Tensor, "b"], n_features: int, max_period: float = 10_000.0, *, closed: bool = False
) -> Float[Tensor, "b f"]:
    """Cosines, then sines, of `t` at `n_features / 2` geometrically spaced frequencies, from 1 down to almost `1 / max_period`.

    With `closed` the last frequency is `1 / max_period` itself.
    """
    half = n_features // 2
    k = torch.arange(half, device=t.device, dtype=t.dtype)
    angle = t[:, None] * torch.exp(-math.log(max_period) * k / (half - closed))  # in this order: at t = 999 the last bit shows
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the flow time, then Linear-SiLU-Linear (DiT, arXiv 2212.09748).

    Parameters
    ----------
    width
        Width of the embedding.
    time_scale
        `t` in [0, 1] is multiplied by this first: unscaled, a table made for 1,000 integer steps is almost constant.
    n_frequencies
        Number of sinusoidal features: one half cosines, the other half sines.
    closed
        See `sinusoidal_features`.
    """

    def __init__(self, width: int, time_scale: float = 1000.0, n_frequencies: int = 256, *, closed: bool = False) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.n_frequencies, self.closed = n_frequencies, closed
        self.mlp = nn.Sequential(xavier_linear(n_frequencies, width), nn.SiLU(), xavier_linear(width, width))

    def forward(self, t: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """Embed one time per cell, or a single time (a scalar or shape [1]) once, as one row to broadcast."""
        t = t.reshape(-1).to(torch.promote_types(t.dtype, torch.float32))  # in bf16 neighbouring times would fall together
        features = sinusoidal_features(t * self.time_scale, self.n_frequencies, closed=self.closed)
        with torch.autocast(t.device.type, enabled=False):
            return self.mlp(features.to(next(self.mlp.parameters()).dtype))


def sincos_1d(positions: Float[Tensor, "n"], width: int) -> Float[Tensor, "n d"]:
    """Sines, then cosines, of the positions at `width / 2` frequencies `10000^(-2k / width)`: a fixed row for each position."""
    if width % 2:
        raise ConfigError(f"sin-cos positions need an even number of features, not {width}")
    omega = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = positions[:, None].double() * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(n_rows: int, n_columns: int, width: int) -> Float[Tensor, "n d"]:
    """Fixed rows for the cells of a grid in reading order: its column in the first half of the features, its row in the second.

    Computed in fp64, given in fp32, so that tables agree to the last bit wherever they are made.
    """
    if width % 4:
        raise ConfigError(f"2-D sin-cos positions need a width that is a multiple of 4, not {width}")
    rows, columns = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    return torch.cat([sincos_1d(index.flatten(), width // 2) for index in (columns, rows)], dim=1).float()
