"""What is known of a gene besides its number: how it goes along with the others in control cells, or a table of yours.

Rows of zeros are genes of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.conditions.features import checked_table
from counterflow.errors import ConfigError, DataError, near

N_COMPONENTS = 32
GENE_FEATURES = ("coexpression",)


def gene_loadings(control_log1p: sparse.csr_matrix, *, seed: int = 0) -> np.ndarray:
    """Loadings (G x P) of a PCA of normalised control cells; zeros for genes that do not vary in them."""
    from sklearn.decomposition import TruncatedSVD

    scaled, varying = _scaled(control_log1p)
    n_components = min(N_COMPONENTS, int(varying.sum()) - 1, control_log1p.shape[0] - 1)
    loadings = np.zeros((control_log1p.shape[1], max(1, n_components)), dtype=np.float32)
    if n_components >= 1:
        found = TruncatedSVD(n_components + 1, random_state=seed).fit(scaled[:, np.flatnonzero(varying)])
        loadings[varying] = found.components_[1:].T  # the first direction is the mean profile
    return loadings


def carried_over(loadings: np.ndarray, known: np.ndarray, control_log1p: sparse.csr_matrix) -> np.ndarray:
    """Loadings of the genes of another panel, on the same components.

    With `s = X v`, the scores of control cells by the genes that both panels have, the loading of any gene x is its regression on them,
    `x . s / |s|^2`: for the genes of a PCA this is the loading itself.

    Parameters
    ----------
    loadings
        Of the first panel (G x P).
    known
        For each gene of the other panel, its row there, or -1.
    control_log1p
        Normalised control cells of the other panel.
    """
    scaled, _ = _scaled(control_log1p)
    shared = np.flatnonzero(known >= 0)
    scores = scaled[:, shared] @ loadings[known[shared]]
    scores = scores - scores.mean(0)  # what all genes share (depth) is the mean profile, which was left out
    length = np.maximum((scores**2).sum(0), 1e-12)
    found = np.asarray(scaled.T @ scores) / length
    found[shared] = loadings[known[shared]]
    return found.astype(np.float32)


def _scaled(control_log1p: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Every gene at unit variance, and which genes vary at all."""
    mean = np.asarray(control_log1p.mean(0)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(control_log1p.multiply(control_log1p).mean(0)).ravel() - mean**2, 0))
    varying = spread > 1e-6
    return control_log1p @ sparse.diags(np.where(varying, 1 / np.where(varying, spread, 1), 0)), varying


def table_rows(table: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Standardised rows (G x P) of a table indexed by gene; zeros for genes without one."""
    rows = checked_table(table, "gene_features")
    if not rows.index.isin(list(genes)).any():
        listed = ", ".join(map(repr, rows.index[:3]))
        raise DataError(f"gene_features names none of the {len(genes):,} genes: its index holds {listed}; {near(genes[0], rows.index)}")
    return rows.reindex(list(genes)).fillna(0.0).to_numpy(dtype=np.float32)


def unknown_kind(given: object) -> ConfigError:
    """For what is neither."""
    return ConfigError(f"gene_features={given!r:.80} is unknown: {near(given, GENE_FEATURES)} Or give a DataFrame indexed by gene")
