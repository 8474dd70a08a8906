"""Cells as points and as distributions of genes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from counterflow.errors import DataError, near
from counterflow.pl.axes import COLOURS, MARKERS, begin, entitle, finish, legend_below, slanted

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def embedding(
    control: AnnData,
    real: AnnData | None,
    predicted: AnnData,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Control, real and predicted cells on the first two principal components of the cells that were measured.

    Parameters
    ----------
    control, real, predicted
        Cells with log1p expression in ``X`` (what `predict` returns) and the same genes. Without `real` cells the axes are
        those of control and predicted cells together.
    """
    from sklearn.decomposition import PCA

    groups = {"control": control, "predicted": predicted, "real": real}  # real cells are few: on top
    values = {name: _log1p(cells, predicted.var_names) for name, cells in groups.items() if cells is not None}
    measured = [values["control"], values["real"] if real is not None else values["predicted"]]
    pca = PCA(2, random_state=0).fit(np.concatenate(measured))
    ax = begin(ax)
    for layer, (name, expression) in enumerate(values.items()):
        x, y = pca.transform(expression).T
        ax.scatter(
            x, y, s=14, marker=MARKERS[name], c=COLOURS[name], alpha=0.55, linewidths=0, label=f"{name} ({len(x)})", zorder=1 + layer
        )
        mean: dict[str, Any] = {"marker": MARKERS[name], "c": COLOURS[name], "edgecolors": "black", "linewidths": 1.2}
        ax.scatter(x.mean(), y.mean(), s=60 if name == "predicted" else 110, zorder=6 if name == "predicted" else 5, **mean)
    share = 100 * pca.explained_variance_ratio_
    ax.set(xlabel=f"PC1 ({share[0]:.0f} %)", ylabel=f"PC2 ({share[1]:.0f} %)")
    entitle(ax, title or "cells, and their means (outlined)")
    legend_below(ax, 3)
    return finish(ax, show, save)


def top_genes(
    control: AnnData,
    real: AnnData,
    predicted: AnnData,
    *,
    n_genes: int = 6,
    genes: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Distributions of the genes that change most in the real cells (or of `genes`): control, real, predicted side by side."""
    groups = {"control": control, "real": real, "predicted": predicted}
    names = list(predicted.var_names)
    values = {name: _log1p(cells, names) for name, cells in groups.items()}
    if genes is None:
        change = np.abs(values["real"].mean(0) - values["control"].mean(0))
        chosen = np.argsort(-change)[:n_genes]
    else:
        for gene in genes:
            if gene not in names:
                raise DataError(f"no gene {gene!r} in the predicted cells: {near(gene, names)}")
        chosen = np.array([names.index(gene) for gene in genes])
    ax = begin(ax)
    offset = {"control": -0.27, "real": 0.0, "predicted": 0.27}
    for name, expression in values.items():
        at = np.arange(len(chosen)) + offset[name]
        drawn: Any = ax.violinplot(expression[:, chosen], positions=at, widths=0.26, showextrema=False, bw_method=0.25)
        for body in drawn["bodies"]:
            body.set(facecolor=COLOURS[name], edgecolor="none", alpha=0.6)
        style: dict[str, Any] = {"marker": MARKERS[name], "c": COLOURS[name], "edgecolors": "black", "linewidths": 0.8}
        ax.scatter(at, expression[:, chosen].mean(0), s=26, label=name, zorder=3, **style)
    ax.set_xticks(np.arange(len(chosen)), [names[i] for i in chosen])
    ax.set(ylabel="log1p of counts per 10,000", ylim=(0, None))
    entitle(ax, title or "genes that change most (points: means)")
    legend_below(ax, 3, slanted(ax, [names[i] for i in chosen]))
    return finish(ax, show, save)


def _log1p(cells: AnnData, genes: Sequence[str]) -> np.ndarray:
    """``X`` as a dense matrix with the genes in the given order; what cannot be log1p is refused."""
    missing = [gene for gene in genes if gene not in cells.var_names]
    if missing:
        raise DataError(f"{len(missing)} genes are not in var_names of some of the cells (first: {missing[0]!r}): plot the same genes")
    matrix = cells[:, list(genes)].X
    dense = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=float)
    if dense.size and dense.max() > 30:
        raise DataError(
            f"X holds values up to {dense.max():.0f}, so it is not log1p: normalise it first (scanpy.pp.normalize_total, log1p)"
        )
    return dense
