"""Some cells of a file whose matrix stays on disk: an AnnData without X that knows which rows of which file it stands for.

AnnData cannot hold a part of a file without reading it. Here ``uns`` names the file and ``obsm`` the row of every cell, so that choosing
some of the cells, again and again, keeps both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from anndata import AnnData

FILE, ROWS = "_counterflow_file", "_counterflow_rows"  # in uns, in obsm


def is_on_disk(adata: AnnData) -> bool:
    """Whether the matrix is in a file; a view of a backed AnnData is one that will be read."""
    return ROWS in adata.obsm or (bool(adata.isbacked) and not adata.is_view)


def file_of(adata: AnnData) -> Path:
    """The file."""
    return Path(str(adata.uns[FILE]) if ROWS in adata.obsm else adata.filename)


def rows_of(adata: AnnData) -> NDArray[np.int32] | None:
    """Which of its rows the cells are; None for all of them."""
    return np.asarray(adata.obsm[ROWS])[:, 0] if ROWS in adata.obsm else None


def some_cells(adata: AnnData, chosen: NDArray) -> AnnData:
    """A copy with the chosen cells (a mask, or positions); of a file nothing is read."""
    if not is_on_disk(adata):
        return adata[chosen].to_memory() if adata.isbacked else adata[chosen].copy()
    from anndata import AnnData

    index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    rows = rows_of(adata)
    taken = (index if rows is None else rows[index]).astype(np.int32)
    uns = {**adata.uns, FILE: os.fspath(file_of(adata))}
    return AnnData(obs=adata.obs.iloc[index].copy(), var=adata.var.copy(), uns=uns, obsm={ROWS: taken[:, None]})
