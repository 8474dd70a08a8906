"""A log-linear Poisson decoder: counts ~ Poisson(exposure * exp(bias + state @ weight)), all genes fitted together."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_LARGEST_STEP = 2.0


def fit_poisson(
    state: Tensor, counts: sparse.csr_matrix, exposure: np.ndarray, *, ridge: float = 1.0, n_steps: int = 12, block: int = 512
) -> tuple[Tensor, Tensor]:
    """Maximum a-posteriori weight (S x G) and bias (G) by Newton steps, `block` genes at a time.

    `ridge` is the prior precision of each weight (states have about unit variance); the bias has none, so the fitted mean of
    every gene equals the observed one.
    """
    design = torch.cat([torch.ones(len(state), 1), state.float()], dim=1)  # [n, 1 + S]
    outer = torch.einsum("ni,nj->nij", design, design).flatten(1)  # [n, (1 + S)^2]
    offset = torch.from_numpy(np.log(np.maximum(exposure, 1.0))).float()[:, None]
    penalty = torch.full((design.shape[1],), ridge)
    penalty[0] = 1e-6
    solutions = [
        _newton(design, outer, offset, torch.from_numpy(counts[:, start : start + block].toarray()), penalty, n_steps)
        for start in range(0, counts.shape[1], block)
    ]
    beta = torch.cat(solutions, dim=1)
    return beta[1:], beta[0]


def _newton(design: Tensor, outer: Tensor, offset: Tensor, y: Tensor, penalty: Tensor, n_steps: int) -> Tensor:
    width = design.shape[1]
    beta = torch.zeros(width, y.shape[1])
    beta[0] = torch.log((y.sum(0) + 0.5) / offset.exp().sum())
    for _ in range(n_steps):
        mean = (offset + design @ beta).clamp(max=15).exp()
        gradient = design.T @ (y - mean) - penalty[:, None] * beta
        hessian = (mean.T @ outer).view(-1, width, width) + torch.diag(penalty)
        step = torch.linalg.solve(hessian, gradient.T).T
        beta = beta + step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
        if step.abs().max() < 1e-4:
            break
    return beta
