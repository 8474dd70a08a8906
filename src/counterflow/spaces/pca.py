"""A linear latent: principal components of log expression, whitened by one scalar, with a log-linear Poisson decoder."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from counterflow.errors import ConfigError
from counterflow.spaces.base import log_normalise
from counterflow.spaces.components import principal_components
from counterflow.spaces.counts import fit_dispersion
from counterflow.spaces.poisson import fit_poisson

_DECODER_CELLS = 5000  # enough for 50 weights per gene; bounds the memory of the fit


class PCASpace(nn.Module):
    """Principal components of the training cells. One scalar scales all of them, so distances keep their meaning for OT.

    Parameters
    ----------
    n_genes
        G.
    n_components
        S; capped by cells and genes at construction time by the caller.
    """

    decoder = "transport"

    def __init__(self, n_genes: int, n_components: int = 50) -> None:
        super().__init__()
        if n_components < 1:
            raise ConfigError(f"n_components={n_components}: a PCA needs at least one component")
        self.state_shape = (n_components,)
        self.mean: Tensor
        self.loadings: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.highest: Tensor
        self.dispersion: Tensor
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("loadings", torch.zeros(n_genes, n_components))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("weight", torch.zeros(n_components, n_genes))
        self.register_buffer("bias", torch.zeros(n_genes))
        self.register_buffer("highest", torch.zeros(n_genes))
        self.register_buffer("dispersion", torch.full((n_genes,), torch.inf))

    def fit(self, counts: sparse.csr_matrix, library: np.ndarray, *, seed: int) -> None:
        """PCA, then the decoder on (at most 5,000 of) the same cells."""
        values = log_normalise(counts, library)
        if self.state_shape[0] > min(values.shape):
            shape = "{} cells and {} genes".format(*values.shape)
            raise ConfigError(f"n_components={self.state_shape[0]} is more than {shape} have: take at most {min(values.shape)}")
        mean, components = principal_components(values, self.state_shape[0], seed=seed)
        self.mean.copy_(torch.from_numpy(mean))
        self.loadings.copy_(torch.from_numpy(components.T.copy()))
        self.scale.fill_(1.0)
        self.scale.fill_(float(self.encode(counts, library).std(correction=0)))
        chosen = np.arange(len(library))
        if len(chosen) > _DECODER_CELLS:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, _DECODER_CELLS, replace=False))
        state = self.encode(counts[chosen], library[chosen])
        weight, bias = fit_poisson(state, counts[chosen], library[chosen])
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.highest.copy_((state @ weight + bias).amax(0) + 1.0)
        self.dispersion.copy_(torch.from_numpy(fit_dispersion(counts[chosen].toarray(), self.decode(state, library[chosen]))))

    def exposure(self, counts: sparse.csr_matrix, library: np.ndarray) -> np.ndarray:
        """The library size."""
        return library

    def encode(self, counts: sparse.csr_matrix, library: np.ndarray) -> Tensor:
        """Component scores (n x S), divided by one scalar."""
        projected = log_normalise(counts, library) @ self.loadings.numpy()
        return torch.from_numpy(projected - self.mean.numpy() @ self.loadings.numpy()) / self.scale

    def decode(self, state: Tensor, exposure: np.ndarray) -> np.ndarray:
        """Expected counts (n x G); a log rate stays within one of the largest seen in training."""
        log_rate = torch.minimum(torch.addmm(self.bias, state.float(), self.weight), self.highest)
        return log_rate.exp_().numpy() * exposure[:, None]
