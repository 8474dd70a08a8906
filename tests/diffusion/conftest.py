from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from counterflow.diffusion.schedule import Schedule, at, linear_schedule


@pytest.fixture(scope="session")
def schedule() -> Schedule:
    return linear_schedule()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class GaussianImages:
    """Images whose pixels are N(mean, spread²): the noise that is to be expected in x is known."""

    schedule: Schedule
    mean: float = 0.4
    spread: float = 0.3

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.spread * torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)

    def noise(self, x: Tensor, time: Tensor) -> Tensor:
        A = at(self.schedule.A, time.long(), x)
        return (1 - A).sqrt() * (x - A.sqrt() * self.mean) / (A * self.spread**2 + 1 - A)


@pytest.fixture
def gaussian(schedule) -> GaussianImages:
    return GaussianImages(schedule)
