"""Ancestral sampling: every step back is drawn from the network's distribution (DDPM, arXiv 2006.11239, algorithm 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from counterflow.diffusion.reverse import Denoiser, Variance, reverse
from counterflow.diffusion.schedule import Schedule


def ddpm(
    denoiser: Denoiser,
    x: Float[Tensor, "b c *s"],
    schedule: Schedule,
    generator: Generator,
    *,
    variance: Variance = "learned_range",
    clip: float | None = None,
) -> Float[Tensor, "b c *s"]:
    """From standard normal noise `x` to images, one call of the network per step of the schedule.

    Parameters
    ----------
    denoiser
        A network under a condition, see `counterflow.diffusion.reverse.Denoiser`.
    schedule
        The one trained on, or fewer of its steps: `respace(schedule, 250)`.
    generator
        Where the noise of the steps comes from; on the CPU, so that a seed means the same on every device.
    variance, clip
        See `counterflow.diffusion.reverse.reverse`.
    """
    for i in reversed(range(len(schedule))):
        time = schedule.times[i].to(x).expand(len(x))
        mean, log_variance = reverse(schedule, denoiser(x, time), x, i, variance=variance, clip=clip)
        noise = torch.randn(x.shape, generator=generator).to(x) if i > 0 else torch.zeros_like(x)
        x = mean + (log_variance / 2).exp() * noise
    return x
