"""The variational bound on the log-likelihood, term by term, in bits per dimension (improved DDPM, arXiv 2102.09672, section 2.1)."""

from __future__ import annotations

from math import log

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from counterflow.diffusion.reverse import Denoiser, Gaussian, posterior, reverse
from counterflow.diffusion.schedule import Schedule, add_noise, at

HALF_BIN = 1 / 255
"""Half the distance of two of 256 grey values that are spread over [-1, 1]."""

EDGE = 0.999
"""Pixels beyond this are black or white: their bins reach to infinity."""

SMALLEST_PROBABILITY = 1e-12


def gaussian_kl(p: Gaussian, q: Gaussian) -> Float[Tensor, "b *s"]:
    """KL(p || q) of each pixel, in nats."""
    return (
        0.5 * (q.log_variance - p.log_variance + (p.log_variance - q.log_variance).exp() - 1)
        + 0.5 * (p.mean - q.mean).square() * (-q.log_variance).exp()
    )


def bin_nll(x: Float[Tensor, "b *s"], gaussian: Gaussian) -> Float[Tensor, "b *s"]:
    """Minus the log of the probability of each pixel's bin, in nats; pixels are grey values in [-1, 1]."""
    inverse = (-gaussian.log_variance / 2).exp()
    centred = x - gaussian.mean
    # The inner bin is reflected to the lower tail, where a difference of two small probabilities keeps its digits.
    inner = torch.special.ndtr(inverse * (HALF_BIN - centred.abs())) - torch.special.ndtr(inverse * (-HALF_BIN - centred.abs()))
    black = torch.special.ndtr(inverse * (centred + HALF_BIN))
    white = torch.special.ndtr(inverse * (HALF_BIN - centred))
    probability = torch.where(x < -EDGE, black, torch.where(x > EDGE, white, inner))
    return -probability.clamp(min=SMALLEST_PROBABILITY).log()


def bound_term(
    schedule: Schedule, output: Float[Tensor, "b k *s"], x0: Float[Tensor, "b c *s"], x: Float[Tensor, "b c *s"], i: Int[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Term `i` of the bound for each image, given the network's `output` (noise and `v`) for `x` = x_i.

    The divergence of the exact step back from the network's; at step 0, the network's code length of the image itself.
    """
    truth, guess = posterior(schedule, x0, x, i), reverse(schedule, output, x, i)
    first = (i == 0).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    nats = torch.where(first, bin_nll(x0, guess), gaussian_kl(truth, guess))
    return nats.flatten(1).mean(1) / log(2)


def prior_term(schedule: Schedule, x0: Float[Tensor, "b *s"]) -> Float[Tensor, "b"]:
    """What the last step still knows of the image: the divergence from standard normal noise."""
    last = len(schedule) - 1
    end = Gaussian(at(schedule.A.sqrt(), last, x0) * x0, at((1 - schedule.A).log(), last, x0))
    noise = Gaussian(torch.zeros_like(x0), torch.zeros_like(end.log_variance))
    return gaussian_kl(end, noise).flatten(1).mean(1) / log(2)


def bits_per_dimension(denoiser: Denoiser, x0: Float[Tensor, "b c *s"], schedule: Schedule, generator: Generator) -> Float[Tensor, "b"]:
    """The whole bound of each image: all terms, with one draw of noise each, and the prior's."""
    total = prior_term(schedule, x0)
    for i in range(len(schedule)):
        steps = torch.full((len(x0),), i)
        x = add_noise(schedule, x0, torch.randn(x0.shape, generator=generator).to(x0), steps)
        total = total + bound_term(schedule, denoiser(x, schedule.times[steps].to(x)), x0, x, steps)
    return total
