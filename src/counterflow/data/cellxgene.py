"""Cells as the file that the viewer cellxgene (desktop) opens: `cellxgene launch cells.h5ad`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.data.schema import raise_problems
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def cellxgene_problems(adata: AnnData) -> list[str]:
    """Why cellxgene would not show these cells, or not all of them; empty if it will.

    It wants unique names of cells and genes, finite float32 expression, one embedding at least (``obsm["X_..."]``, two columns or more,
    finite), and columns of ``obs`` that are categories, numbers, or true and false.
    """
    found = [
        f"{what} names are not unique" for what, names in (("cell", adata.obs_names), ("gene", adata.var_names)) if not names.is_unique
    ]
    values = adata.X.data if sparse.issparse(adata.X) else adata.X  # type: ignore[union-attr]
    if values is None or values.dtype != np.float32:
        found.append(f"X is {'not there' if values is None else values.dtype}, not float32")
    elif not np.isfinite(values).all():
        found.append("X holds values that are not finite")
    embeddings = {name: np.asarray(value) for name, value in adata.obsm.items() if name.startswith("X_")}
    if not embeddings:
        found.append("there is no embedding: obsm has no 'X_...' (scanpy.pp.pca makes one, scanpy.tl.umap another)")
    for name, value in embeddings.items():
        if value.ndim != 2 or value.shape[1] < 2:
            found.append(f"obsm[{name!r}] has the shape {value.shape}, and needs two columns at least")
        elif value.dtype.kind != "f" or not np.isfinite(value).all():
            found.append(f"obsm[{name!r}] holds values that are no finite numbers")
    for name, column in adata.obs.items():
        if not _shown(column):
            found.append(f"obs[{name!r}] is {column.dtype}: neither categories nor numbers nor true and false")
    return found


def to_cellxgene(adata: AnnData, path: str | os.PathLike[str]) -> Path:
    """Write cells, predicted or real or both, as a file for cellxgene. `adata` is not changed.

    Expression becomes CSR float32, columns of text become categories, and of everything else only what the viewer shows is kept:
    ``obs``, ``var``, the embeddings ``obsm["X_..."]``, and the colours that scanpy gave to categories.

    Parameters
    ----------
    adata
        What `CounterFlow.predict` returned, or several such beside real cells (`anndata.concat`), with an embedding.
    path
        The file, ``.h5ad``.

    Raises
    ------
    DataError
        Listing everything that cellxgene would stumble over; nothing is written then.
    """
    from anndata import AnnData

    path = Path(path)
    if path.suffix != ".h5ad":
        raise DataError(f"{str(path)!r}: cellxgene opens files whose name ends in .h5ad")
    obs = adata.obs.copy()
    for name in [name for name in obs if not _shown(obs[name])]:
        obs[name] = obs[name].astype(str).where(obs[name].notna()).astype("category")
    colours = {key: value for key, value in adata.uns.items() if key.removesuffix("_colors") in obs and key.endswith("_colors")}
    cells = AnnData(
        None if adata.X is None else sparse.csr_matrix(adata.X, dtype=np.float32),
        obs=obs,
        var=adata.var.copy(),
        obsm={name: np.asarray(value, dtype=np.float32) for name, value in adata.obsm.items() if name.startswith("X_")},
        uns=colours,
    )
    raise_problems(cellxgene_problems(cells), "cellxgene cannot show these cells")
    cells.write_h5ad(path, compression="gzip")
    return path


def _shown(column: pd.Series) -> bool:
    """Whether the viewer can colour cells by this column."""
    return isinstance(column.dtype, pd.CategoricalDtype) or getattr(column.dtype, "kind", "O") in "biuf"
