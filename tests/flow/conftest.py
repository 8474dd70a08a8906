from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianOracle:
    """Everything about the flow from N(0, I) to N(m, diag s²) with independent coupling, in closed form."""

    m: Tensor
    s: Tensor

    def variance(self, t: Tensor) -> Tensor:
        return t**2 * self.s**2 + (1 - t) ** 2

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1) if t.ndim else t
        return self.m + (t * self.s**2 - (1 - t)) / self.variance(t) * (x - t * self.m)

    def transport(self, x0: Tensor) -> Tensor:
        return self.m + self.s * x0

    def posterior_x1(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x] by Gaussian conditioning."""
        t = t.reshape(-1, 1) if t.ndim else t
        return self.m + t * self.s**2 / self.variance(t) * (x - t * self.m)

    def posterior_x0(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1) if t.ndim else t
        return (1 - t) / self.variance(t) * (x - t * self.m)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1) if t.ndim else t
        return -(x - t * self.m) / self.variance(t)


@pytest.fixture
def oracle() -> GaussianOracle:
    return GaussianOracle(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 1.5, 0.8], dtype=torch.float64))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
