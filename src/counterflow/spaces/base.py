"""What every space offers: cells in, states for the flow out, and back to expected counts."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import sparse
from torch import Tensor

TARGET_SUM = 1e4


class StateSpace(Protocol):
    """Fitted on training cells only; buffers hold everything fitted, so `state_dict` is the whole space."""

    decoder: str  # "transport": rates that move observed counts; "round": the state already holds counting noise

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        ...

    @property
    def dispersion(self) -> Tensor:
        """Inverse dispersion of the counts around the decoded mean (G); inf = Poisson."""
        ...

    def fit(self, counts: sparse.csr_matrix, library: np.ndarray, *, seed: int) -> None:
        """Learn the space from training cells (n x G)."""
        ...

    def exposure(self, counts: sparse.csr_matrix, library: np.ndarray) -> np.ndarray:
        """What `decode` multiplies its rates with (n): the library size, or the sum over the modelled genes."""
        ...

    def encode(self, counts: sparse.csr_matrix, library: np.ndarray) -> Tensor:
        """States (n x S) of cells (n x G)."""
        ...

    def decode(self, state: Tensor, exposure: np.ndarray) -> np.ndarray:
        """Expected counts (n x G) of states (n x S)."""
        ...


def log_normalise(counts: sparse.csr_matrix, library: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts per 10,000 of the library; only nonzeros are touched. Empty cells stay zero."""
    scale = (TARGET_SUM / np.maximum(library, 1.0)).astype(np.float32)
    out = counts.astype(np.float32, copy=True)
    out.data *= np.repeat(scale, np.diff(out.indptr))
    np.log1p(out.data, out=out.data)
    return out
