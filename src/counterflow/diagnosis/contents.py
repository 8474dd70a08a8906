"""What a matrix holds: counts, log1p, or what else it looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from counterflow.data.matrix import raw_matrix
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def usable_layer(adata: AnnData) -> tuple[str | None, str, str, list[str]]:
    """Layer, matrix state, both in words, and notes; counts are preferred to log1p wherever they are."""
    kinds = {None: kind_of(adata, None)} | {name: kind_of(adata, name) for name in adata.layers}
    words = ", ".join(f"{'X' if layer is None else f'layers[{layer!r}]'}: {kind}" for layer, kind in kinds.items())
    notes = []
    if adata.raw is not None:
        notes.append("adata.raw is there too; counterflow does not read it: copy it into a layer if it holds the counts")
    for state in ("counts", "log1p"):
        for layer, kind in kinds.items():
            if kind == state:
                return layer, state, words, notes
    return None, "counts", words, notes


def kind_of(adata: AnnData, layer: str | None) -> str:
    """counts, log1p, or what else it looks like."""
    try:
        matrix = raw_matrix(adata, layer)
    except DataError as error:
        return "damaged" if "damaged" in str(error) else "nothing"
    values: np.ndarray = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        return f"dtype {values.dtype}"
    if not values.size or not np.isfinite(values).all():
        return "empty" if not values.size else "has NaN or infinite values"
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return "scaled or centred (negative values)"
    if np.array_equal(values, np.rint(values)):
        return "counts" if high > 0 else "only zeros"
    return "log1p" if high <= 30 else "normalised, not logarithmic"
