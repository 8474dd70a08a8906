"""The way that cells take along the flow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from counterflow.pl.axes import COLOURS, MARKERS, begin, entitle, finish, legend_below

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from counterflow.model import CounterFlow


def trajectories(
    model: CounterFlow,
    condition: str | pd.DataFrame,
    real: AnnData | None = None,
    *,
    adata: AnnData | None = None,
    n_cells: int = 60,
    n_steps: int = 20,
    seed: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Paths of control cells to where they are predicted, on the first two principal components of the states at both ends.

    Parameters
    ----------
    model
        A fitted model.
    condition
        One condition, as in `predict`.
    real
        Cells measured under it (counts, as declared), drawn behind the paths; the components are then those of control and real cells.
    adata, n_cells, n_steps, seed
        Of `CounterFlow.get_paths`.
    """
    from sklearn.decomposition import PCA

    paths = model.get_paths(condition, adata, n_cells=n_cells, n_steps=n_steps, seed=seed)
    paths = paths.reshape(*paths.shape[:2], -1)
    ends = paths[-1] if real is None else model.get_latent_representation(real).reshape(real.n_obs, -1)
    pca = PCA(2, random_state=0).fit(np.concatenate([paths[0], ends]))
    drawn = pca.transform(paths.reshape(-1, paths.shape[2])).reshape(*paths.shape[:2], 2)
    ax = begin(ax)
    start = "control" if model.config["source"] == "control" else "noise"
    if real is not None:
        x, y = pca.transform(ends).T
        ax.scatter(x, y, s=14, c=COLOURS["real"], alpha=0.35, linewidths=0, label=f"real ({real.n_obs})", zorder=1)
    ax.plot(*drawn.transpose(2, 0, 1), color="#555555", linewidth=0.6, alpha=0.5, zorder=2)
    for name, label, points in (("control", start, drawn[0]), ("predicted", "predicted", drawn[-1])):
        x, y = points.T
        ax.scatter(x, y, s=18, marker=MARKERS[name], c=COLOURS[name], alpha=0.9, linewidths=0, label=f"{label} ({len(x)})", zorder=3)
    share = 100 * pca.explained_variance_ratio_
    ax.set(xlabel=f"PC1 ({share[0]:.0f} %)", ylabel=f"PC2 ({share[1]:.0f} %)")
    entitle(ax, title or "the way of control cells along the flow")
    legend_below(ax, 3)
    return finish(ax, show, save)
