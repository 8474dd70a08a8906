"""Cells that a declaration leaves out on request: without a label (`drop_missing`), or without a count (`drop_empty_cells`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterflow.data.file_rows import some_cells
from counterflow.data.matrix import as_csr, raw_matrix
from counterflow.data.stored import is_stored, stored
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.schema import Setup


def missing_values(values: pd.Series) -> np.ndarray:
    """True where a column says nothing: no value, or an empty text."""
    values = values.reset_index(drop=True)  # names of cells are not asked for, nor copied
    empty = {level for level in values.dropna().unique() if isinstance(level, str) and not level.strip()}
    return (values.isna() | values.isin(empty)).to_numpy(dtype=bool)


def kept_cells(adata: AnnData, setup: Setup | None = None) -> AnnData:
    """The cells of `adata` that its declaration keeps: `adata` itself, or a copy with fewer cells (of a file nothing is read).

    Parameters
    ----------
    adata
        Never changed.
    setup
        Default: what `setup_anndata` declared.
    """
    if setup is None:
        from counterflow.data.schema import setup_of

        setup = setup_of(adata)
    keep = np.ones(adata.n_obs, dtype=bool)
    if setup.drop_missing:
        for key in setup.obs_keys:
            if key in adata.obs:
                keep &= ~missing_values(adata.obs[key])
    if setup.drop_empty_cells:
        keep &= ~_empty(adata, setup)
    if keep.all():
        return adata
    return some_cells(adata, keep)


def _empty(adata: AnnData, setup: Setup) -> np.ndarray:
    """True for cells without any count; none where the matrix cannot be read, which is said elsewhere."""
    layer = setup.layer
    if is_stored(adata, layer):
        try:
            return stored(adata, setup).totals == 0
        except DataError:
            return np.zeros(adata.n_obs, dtype=bool)
    try:
        matrix = raw_matrix(adata, layer)
    except (DataError, KeyError):
        return np.zeros(adata.n_obs, dtype=bool)
    if not (np.issubdtype(matrix.dtype, np.number) or matrix.dtype == bool):
        return np.zeros(adata.n_obs, dtype=bool)
    return np.diff(as_csr(adata, layer).indptr) == 0
