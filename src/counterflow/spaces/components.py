"""Principal components of sparse values: from the covariance of the genes where there are not too many, else iteratively."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import eigh

from counterflow.processor import quick_products

_MOST_GENES = 3000  # their covariance is quick to make and to take apart; beyond, iterations on the sparse values are quicker
_ROWS = 4096  # made dense together


def principal_components(values: sparse.csr_matrix, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of every gene (G) and the `n` leading components (n x G), each with its largest loading positive."""
    n_cells, n_genes = values.shape
    if n_genes <= min(_MOST_GENES, n_cells - 1) and n < n_genes:
        mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
        _, vectors = eigh(covariance(values, mean), subset_by_index=[n_genes - n, n_genes - 1], driver="evr")
        return mean, _signed(vectors.T[::-1])
    from sklearn.decomposition import PCA

    iterative = n < min(n_cells, n_genes)
    pca = PCA(n, svd_solver="arpack" if iterative else "full", random_state=seed).fit(values if iterative else values.toarray())
    return np.asarray(pca.mean_).ravel(), _signed(pca.components_)


def covariance(values: sparse.csr_matrix, mean: np.ndarray) -> np.ndarray:
    """Of the genes (G x G, fp64), block after block of cells."""
    total = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
    with quick_products():
        for start in range(0, values.shape[0], _ROWS):
            block = torch.from_numpy(values[start : start + _ROWS].toarray() - mean.astype(np.float32))
            total += block.T @ block
    return total.numpy() / (values.shape[0] - 1)


def _signed(components: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return components * np.sign(largest)
