"""Classifier-free guidance of a network that predicts noise (arXiv 2207.12598)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.diffusion.reverse import Denoiser
from counterflow.errors import ConfigError, near

Guided: TypeAlias = Literal["all", "reference"]
"""Which channels of the noise are guided: all of them, or the first three, as the reference implementation of DiT samples."""

REFERENCE_CHANNELS = 3


def classifier_free(of_condition: Denoiser, of_null: Denoiser, w: float, channels: Guided = "all") -> Denoiser:
    """The noise `null + w (condition - null)`: more typical of the condition for w > 1.

    The variance, and channels that are not guided, are those under the condition. At w = 1 the null is not asked.

    Parameters
    ----------
    channels
        `"reference"` guides the first three channels only, with which the published samples of DiT were made.
    """
    if channels not in ("all", "reference"):
        raise ConfigError(f"no guided channels {channels!r}: {near(channels, ('all', 'reference'))}")
    if w == 1:
        return of_condition

    def denoiser(x: Float[Tensor, "b c *s"], time: Float[Tensor, "b"]) -> Float[Tensor, "b k *s"]:
        n = x.shape[1] if channels == "all" else min(x.shape[1], REFERENCE_CHANNELS)
        plain, null = of_condition(x, time), of_null(x, time)[:, :n]
        return torch.cat([null + w * (plain[:, :n] - null), plain[:, n:]], 1)

    return denoiser
