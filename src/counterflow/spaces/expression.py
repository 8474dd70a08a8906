"""The raw space: every modelled gene is a state feature, log1p of counts per 10,000, standardised."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from counterflow.spaces.base import TARGET_SUM, log_normalise

_CLIP = 10.0  # standard deviations


class ExpressionSpace(nn.Module):
    """log1p expression centred and scaled by the training standard deviation of each gene, clipped at 10.

    The flow learns observed cells, counting noise included: decoded counts are rounded, not drawn again.
    """

    decoder = "round"

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.state_shape = (n_genes,)
        self.mean: Tensor
        self.scale: Tensor
        self.dispersion: Tensor
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("dispersion", torch.full((n_genes,), torch.inf))

    def fit(self, counts: sparse.csr_matrix, library: np.ndarray, *, seed: int) -> None:
        """Mean and standard deviation of each gene; a gene that never varies gets scale 1."""
        del seed
        values = log_normalise(counts, library)
        mean = np.asarray(values.mean(0)).ravel()
        variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.where(variance > 1e-8, np.sqrt(np.maximum(variance, 1e-8)), 1.0)))

    def exposure(self, counts: sparse.csr_matrix, library: np.ndarray) -> np.ndarray:
        """The library size."""
        return library

    def encode(self, counts: sparse.csr_matrix, library: np.ndarray) -> Tensor:
        """Standardised log expression (n x G)."""
        values = torch.from_numpy(log_normalise(counts, library).toarray())
        return values.sub_(self.mean).div_(self.scale).clamp_(-_CLIP, _CLIP)

    def decode(self, state: Tensor, exposure: np.ndarray) -> np.ndarray:
        """Expected counts; negative log expression becomes zero."""
        values = torch.addcmul(self.mean, state, self.scale).clamp_(0, _LARGEST)
        return values.expm1_().numpy() * (exposure[:, None] / TARGET_SUM)


_LARGEST = float(np.log1p(TARGET_SUM))  # all counts of a cell in one gene
