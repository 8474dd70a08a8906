"""Sampling with as much noise as is wanted, down to none, at the same marginals (DDIM, arXiv 2010.02502)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from counterflow.diffusion.reverse import Denoiser, clipped, noise_hat, split_output, x0_hat
from counterflow.diffusion.schedule import Schedule, at
from counterflow.errors import ConfigError


def ddim(
    denoiser: Denoiser,
    x: Float[Tensor, "b c *s"],
    schedule: Schedule,
    generator: Generator | None = None,
    *,
    eta: float = 0.0,
    clip: float | None = None,
) -> Float[Tensor, "b c *s"]:
    """From standard normal noise `x` to images, one call of the network per step of the schedule.

    Parameters
    ----------
    denoiser
        A network under a condition; if it gives a variance, that is not used.
    schedule
        The one trained on, or fewer of its steps: `respace(schedule, "ddim50")`.
    generator
        Where the noise of the steps comes from, on the CPU; needed unless `eta` is 0.
    eta
        0 draws no noise: the image is a function of `x`. 1 draws as much as `ddpm` with the posterior's variance.
    clip
        See `counterflow.diffusion.reverse.reverse`.

    Raises
    ------
    ConfigError
        If there is to be noise and no generator.
    """
    if eta and generator is None:
        raise ConfigError(f"ddim with eta={eta} draws noise: give it a generator")
    spread = eta * schedule.posterior_variance.sqrt()
    direction = (1 - schedule.A_before - spread**2).clamp(min=0).sqrt()
    for i in reversed(range(len(schedule))):
        time = schedule.times[i].to(x).expand(len(x))
        noise, _ = split_output(denoiser(x, time), x)
        x0 = x0_hat(schedule, x, noise, i)
        if clip is not None:
            x0 = clipped(x0, clip)
            noise = noise_hat(schedule, x, x0, i)
        mean = at(schedule.A_before.sqrt(), i, x) * x0 + at(direction, i, x) * noise
        x = mean + at(spread, i, x) * torch.randn(x.shape, generator=generator).to(x) if eta and i > 0 else mean
    return x
