"""One step back: what a network's output says about the image one step cleaner.

A network is asked with (x, time) and answers with the noise in x, C channels. If it has learnt the variance too, C more follow: `v`, which
interpolates between the smallest and the largest variance that a step can want (improved DDPM, arXiv 2102.09672, equation 15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

from counterflow.diffusion.schedule import Schedule, at
from counterflow.errors import ConfigError, near

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x, time) -> noise, or noise and `v` stacked along the channels; the condition is already bound, `time` is one value per image."""

Variance: TypeAlias = Literal["learned_range", "small", "large"]
"""Of a reverse step: chosen by `v`, or fixed at the posterior's (given x0), or at beta."""

Step: TypeAlias = int | Int[Tensor, "b"]
"""Index into a schedule: the same for all images, or one each."""


class Gaussian(NamedTuple):
    """A distribution of images whose pixels are independent."""

    mean: Float[Tensor, "b *s"]
    log_variance: Tensor


def posterior(schedule: Schedule, x0: Float[Tensor, "b *s"], x: Float[Tensor, "b *s"], i: Step) -> Gaussian:
    """The image one step before `x` = x_i, if the clean one is `x0`: exact."""
    of_x0 = schedule.betas * schedule.A_before.sqrt() / (1 - schedule.A)
    of_x = (1 - schedule.A_before) * (1 - schedule.betas).sqrt() / (1 - schedule.A)
    return Gaussian(at(of_x0, i, x) * x0 + at(of_x, i, x) * x, at(schedule.log_posterior_variance, i, x))


def x0_hat(schedule: Schedule, x: Float[Tensor, "b *s"], noise: Float[Tensor, "b *s"], i: Step) -> Float[Tensor, "b *s"]:
    """The clean image, if this is the noise in `x` = x_i."""
    return at((1 / schedule.A).sqrt(), i, x) * x - at((1 / schedule.A - 1).sqrt(), i, x) * noise


def noise_hat(schedule: Schedule, x: Float[Tensor, "b *s"], x0: Float[Tensor, "b *s"], i: Step) -> Float[Tensor, "b *s"]:
    """The noise in `x` = x_i, if this is the clean image."""
    return (at((1 / schedule.A).sqrt(), i, x) * x - x0) / at((1 / schedule.A - 1).sqrt(), i, x)


def split_output(output: Float[Tensor, "b k *s"], x: Float[Tensor, "b c *s"]) -> tuple[Tensor, Tensor | None]:
    """The noise, and `v` if the network gives it.

    Raises
    ------
    ConfigError
        If the output has neither as many channels as the image nor twice as many.
    """
    n = x.shape[1]
    if output.shape[1] not in (n, 2 * n):
        raise ConfigError(f"the network gave {output.shape[1]} channels for images of {n}: the noise takes {n}, noise and variance {2 * n}")
    return output[:, :n], output[:, n:] if output.shape[1] == 2 * n else None


def reverse(
    schedule: Schedule,
    output: Float[Tensor, "b k *s"],
    x: Float[Tensor, "b c *s"],
    i: Step,
    *,
    variance: Variance = "learned_range",
    clip: float | None = None,
) -> Gaussian:
    """The image one step before `x` = x_i, as the network's `output` has it.

    Parameters
    ----------
    variance
        `"learned_range"` needs a network that gives `v`; the others pay no attention to it.
    clip
        Largest absolute value of a clean pixel, for images in pixels; None for latents.
    """
    noise, v = split_output(output, x)
    mean, _ = posterior(schedule, clipped(x0_hat(schedule, x, noise, i), clip), x, i)
    return Gaussian(mean, log_variance(schedule, v, x, i, variance))


def clipped(x0: Tensor, clip: float | None) -> Tensor:
    """Pixels no further from 0 than `clip`."""
    return x0 if clip is None else x0.clamp(-clip, clip)


def log_variance(schedule: Schedule, v: Tensor | None, x: Float[Tensor, "b *s"], i: Step, variance: Variance = "learned_range") -> Tensor:
    """Of the reverse step from x_i.

    `v` = -1 is the posterior's, 1 is beta; it is not clamped.
    """
    small = at(schedule.log_posterior_variance, i, x)
    if variance == "small":
        return small
    if variance == "large":
        return at(schedule.log_large_variance, i, x)
    if variance != "learned_range":
        raise ConfigError(f"no variance {variance!r}: {near(variance, ('learned_range', 'small', 'large'))}")
    if v is None:
        raise ConfigError("this network gives no variance: use variance='small' or 'large', or train one that does")
    share = (v + 1) / 2
    return share * at(schedule.betas.log(), i, x) + (1 - share) * small
