"""What a diffusion network is trained on: the noise, and, if it has one, the variance through the bound."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterflow.diffusion.bound import bound_term
from counterflow.diffusion.reverse import split_output
from counterflow.diffusion.schedule import Schedule


def hybrid_loss(
    schedule: Schedule,
    output: Float[Tensor, "b k *s"],
    x0: Float[Tensor, "b c *s"],
    x: Float[Tensor, "b c *s"],
    noise: Float[Tensor, "b c *s"],
    i: Int[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """Squared error of the noise, averaged over pixels, plus the bound's term in bits (improved DDPM, arXiv 2102.09672; DiT).

    The bound teaches the variance only: the noise is detached in it. It is not rescaled, as in DiT's training. A network that
    gives no variance gets the first part alone.

    Parameters
    ----------
    output
        What the network gave for `x`, the images `x0` after step `i` with this `noise`; `counterflow.diffusion.schedule.add_noise`.

    Returns
    -------
    One value per image.
    """
    guess, v = split_output(output, x)
    error = (noise - guess).square().flatten(1).mean(1)
    return error if v is None else error + bound_term(schedule, torch.cat([guess.detach(), v], 1), x0, x, i)
