"""How much noise there is at each step of the diffusion, and the numbers that follow from it.

Diffusion has integer times, and noise at the far end: 0 is almost clean, the last one is almost pure noise. (The flow's t runs the
other way, from noise at 0 to data at 1.) Letters, as in DDPM (arXiv 2006.11239): `beta` is the variance added in one step, `A` here (alpha
bar in the paper) what is left of the signal's variance after all steps so far: x_t = sqrt(A) x0 + sqrt(1 - A) noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_TIMES = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02


@dataclass(frozen=True, eq=False)
class Schedule:
    """Tables over the steps i = 0 .. n - 1, in float64; `at` gives their entries in the precision of the images.

    Attributes
    ----------
    betas
        Variance of the noise that step i adds.
    times
        What the network is told at step i: its index in the schedule that was trained on (see `counterflow.diffusion.respacing`).
    """

    betas: Float[Tensor, "n"]
    times: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def A(self) -> Float[Tensor, "n"]:
        """Share of the variance that is signal after step i."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def A_before(self) -> Float[Tensor, "n"]:
        """The same before step i: 1 where nothing was added yet."""
        return torch.cat([self.A.new_ones(1), self.A[:-1]])

    @cached_property
    def posterior_variance(self) -> Float[Tensor, "n"]:
        """Variance of x_{i-1} given x_i and x0: 0 at i = 0."""
        return self.betas * (1 - self.A_before) / (1 - self.A)

    @cached_property
    def log_posterior_variance(self) -> Float[Tensor, "n"]:
        """Its logarithm; that of step 1 stands for step 0, where it would be minus infinity."""
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def log_large_variance(self) -> Float[Tensor, "n"]:
        """Logarithm of beta, the largest variance a reverse step can want; at step 0 again the posterior's of step 1."""
        return torch.cat([self.posterior_variance[1:2], self.betas[1:]]).log()


def linear_schedule(n_times: int = N_TIMES) -> Schedule:
    """Betas that grow in equal steps from 1e-4 to 0.02: the schedule of DDPM and DiT for 1,000 times."""
    return Schedule(torch.linspace(FIRST_BETA, LAST_BETA, n_times, dtype=torch.float64), torch.arange(n_times))


def at(table: Float[Tensor, "n"], i: int | Int[Tensor, "b"], x: Float[Tensor, "b *s"]) -> Tensor:
    """Entry `i` of a table (one for all images, or one each), in the precision of `x` and shaped to broadcast over it."""
    entry = table[torch.as_tensor(i, device=table.device)].to(x)
    return entry if entry.ndim == 0 else entry.reshape(-1, *[1] * (x.ndim - 1))


def add_noise(
    schedule: Schedule, x0: Float[Tensor, "b *s"], noise: Float[Tensor, "b *s"], i: int | Int[Tensor, "b"]
) -> Float[Tensor, "b *s"]:
    """The images `x0` after step `i` of the diffusion, with this standard normal noise."""
    return at(schedule.A.sqrt(), i, x0) * x0 + at((1 - schedule.A).sqrt(), i, x0) * noise
