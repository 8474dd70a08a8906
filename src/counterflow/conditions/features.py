"""What is known of a perturbation before it was ever measured: one row of numbers per entity."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.errors import ConfigError, DataError, near, warn

FEATURES = ("coexpression", "learned")


def feature_table(features: str | pd.DataFrame, control_log1p: sparse.csr_matrix, genes: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Rows = entities that have features, columns = numbers.

    Parameters
    ----------
    features
        ``coexpression`` (gene loadings of a PCA of control training cells), ``learned`` (none: seen entities only), or a
        DataFrame indexed by entity name (ESM2, GenePT, fingerprints, ...).
    control_log1p
        Normalised control training cells (n x G), read for ``coexpression`` only.
    """
    if isinstance(features, pd.DataFrame):
        return checked_table(features)
    if features == "learned":
        return pd.DataFrame(index=pd.Index([], dtype=str))
    if features == "coexpression":
        return coexpression(control_log1p, genes, seed=seed)
    raise ConfigError(
        f"perturbation_features={features!r} is unknown: {near(features, FEATURES)} Or give a DataFrame indexed by perturbation"
    )


def checked_table(table: pd.DataFrame, name: str = "perturbation_features") -> pd.DataFrame:
    """A table of the user's with standardised columns; `name` is what errors call it."""
    table = table.set_axis(table.index.astype(str))
    if table.index.has_duplicates:
        doubled = table.index[table.index.duplicated()][0]
        raise DataError(f"{name} has several rows for {doubled!r}: keep one")
    try:
        values = table.astype(np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{name} must hold numbers only") from None
    if not np.isfinite(values.to_numpy()).all():
        raise DataError(f"{name} holds NaN or infinite values: drop these rows (a missing row is allowed)")
    spread = values.std().replace(0, 1).fillna(1)
    return (values - values.mean()) / spread


def check_names(table: pd.DataFrame, perturbations: Collection[str], enough: int) -> None:
    """Refuse a table that names no perturbation of the screen; warn of one that names too few to learn from."""
    rows = list(map(str, table.index))
    named = set(rows) & set(perturbations)
    if named and len(named) < min(enough, len(perturbations)):
        warn(f"perturbation_features names {len(named)} of {len(perturbations)} perturbations: too few to predict others from", above=4)
    if named or not perturbations:
        return
    first = sorted(perturbations)[0]
    ids = " (one side has Ensembl ids, the other gene symbols)" if _ensembl(rows) != _ensembl(perturbations) else ""
    listed = ", ".join(map(repr, rows[:3])) if rows else "nothing"
    raise DataError(
        f"perturbation_features names none of the {len(perturbations)} perturbations of this screen: its index holds {listed}{ids}; "
        f"for {first!r} {near(first, rows)}"
    )


def _ensembl(names: Collection[str]) -> bool:
    return any(name.startswith("ENS") for name in names)


def coexpression(control_log1p: sparse.csr_matrix, genes: Sequence[str], *, n_components: int = 32, seed: int = 0) -> pd.DataFrame:
    """Gene loadings of a PCA of control cells, each row scaled to unit length; genes that do not vary in controls have none."""
    from sklearn.decomposition import TruncatedSVD

    dense_mean = np.asarray(control_log1p.mean(0)).ravel()
    scale = np.sqrt(np.maximum(np.asarray(control_log1p.multiply(control_log1p).mean(0)).ravel() - dense_mean**2, 0))
    varying = np.flatnonzero(scale > 1e-6)
    n_components = min(n_components, len(varying) - 1, control_log1p.shape[0] - 1)
    if n_components < 1:
        return pd.DataFrame(index=pd.Index([], dtype=str))
    scaled = control_log1p[:, varying] @ sparse.diags(1 / scale[varying])
    loadings = TruncatedSVD(n_components + 1, random_state=seed).fit(scaled).components_[1:].T  # the first direction is the mean profile
    length = np.linalg.norm(loadings, axis=1, keepdims=True)
    return pd.DataFrame(loadings / np.maximum(length, 1e-12), index=[genes[int(i)] for i in varying]).astype(np.float32)
