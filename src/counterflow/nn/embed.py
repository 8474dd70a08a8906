"""The flow's time t as a vector the network can read."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterflow.nn.init import xavier_linear


def sinusoidal_features(t: Float[Tensor, "b"], n_features: int, max_period: float = 10_000.0) -> Float[Tensor, "b f"]:
    """Cosines, then sines, of `t` at `n_features / 2` geometrically spaced frequencies, from 1 down to almost `1 / max_period`."""
    half = n_features // 2
    exponent = torch.arange(half, device=t.device, dtype=t.dtype) / half
    angle = t[:, None] * torch.exp(-math.log(max_period) * exponent)
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
    """

    def __init__(self, width: int, time_scale: float = 1000.0, n_frequencies: int = 256) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.n_frequencies = n_frequencies
        self.mlp = nn.Sequential(xavier_linear(n_frequencies, width), nn.SiLU(), xavier_linear(width, width))

    def forward(self, t: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """Embed one time per cell, or a single time (a scalar or shape [1]) once, as one row to broadcast."""
        t = t.reshape(-1).to(torch.promote_types(t.dtype, torch.float32))  # in bf16 neighbouring times would fall together
        features = sinusoidal_features(t * self.time_scale, self.n_frequencies)
        with torch.autocast(t.device.type, enabled=False):
            return self.mlp(features.to(next(self.mlp.parameters()).dtype))
