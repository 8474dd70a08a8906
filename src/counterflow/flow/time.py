"""Where along the path training looks: samplers `(n, generator, device) -> t` with t in (0, 1).

The straight path has no noise schedule; the density of t is the schedule. `uniform` suits a control source, `logit_normal` a
noise source. Arguments are set with `functools.partial(logit_normal, mean=-0.5)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor

TimeSampler: TypeAlias = Callable[[int, Generator, torch.device | str], Tensor]


def uniform(n: int, generator: Generator, device: torch.device | str = "cpu") -> Float[Tensor, "b"]:
    """Every time alike."""
    return torch.rand(n, generator=generator, device=generator.device).to(device)


def logit_normal(
    n: int, generator: Generator, device: torch.device | str = "cpu", *, mean: float = 0.0, std: float = 1.0
) -> Float[Tensor, "b"]:
    """logit(t) ~ N(mean, std²): mostly the middle of the path (SD3, arXiv 2403.03206)."""
    z = torch.randn(n, generator=generator, device=generator.device)
    return torch.sigmoid(mean + std * z).to(device)


def mode(n: int, generator: Generator, device: torch.device | str = "cpu", *, s: float = 1.29) -> Float[Tensor, "b"]:
    """Heavy in the middle for s > 0, at the ends for s < 0, without vanishing anywhere; -1 <= s <= 1.75 (SD3, arXiv 2403.03206)."""
    u = uniform(n, generator, device)
    return 1 - u - s * (torch.cos(torch.pi / 2 * u).square() - 1 + u)


TIMES: dict[str, TimeSampler] = {"uniform": uniform, "logit_normal": logit_normal, "mode": mode}
