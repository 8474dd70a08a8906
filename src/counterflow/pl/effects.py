"""Effects on genes: predicted against real, and what pairs do beyond their parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterflow.errors import DataError
from counterflow.pl.axes import SERIES, begin, entitle, finish, inches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from counterflow.model import CounterFlow


def effect(
    true_effect: np.ndarray,
    predicted_effect: np.ndarray | dict[str, np.ndarray],
    *,
    genes: Sequence[str] | None = None,
    n_labels: int = 6,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Predicted against true change of the mean log expression, one point per gene, with Pearson's r.

    Parameters
    ----------
    true_effect
        Mean of the real (or true) cells minus mean of the control cells, one value per gene.
    predicted_effect
        The same of the prediction; or several by name, the first of which is drawn on top.
    genes
        Names; the `n_labels` genes that change most are written beside their points.
    """
    series = predicted_effect if isinstance(predicted_effect, dict) else {"predicted": predicted_effect}
    true_effect = np.asarray(true_effect, dtype=float).ravel()
    ax = begin(ax)
    for level, ((name, values), (colour, marker)) in enumerate(zip(series.items(), SERIES, strict=False)):
        values = np.asarray(values, dtype=float).ravel()
        if values.shape != true_effect.shape:
            raise DataError(f"{name!r} has {len(values)} genes and the true effect {len(true_effect)}: give both for the same genes")
        r = np.corrcoef(true_effect, values)[0, 1] if values.std() > 0 and true_effect.std() > 0 else float("nan")
        ax.scatter(
            true_effect, values, s=18, marker=marker, c=colour, alpha=0.7, linewidths=0, label=f"{name}, r = {r:.2f}", zorder=4 - level
        )
    ax.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--", zorder=0)
    ax.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    ax.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    first = np.asarray(next(iter(series.values())), dtype=float).ravel()
    for i in np.argsort(-np.abs(true_effect))[: n_labels if genes is not None else 0]:
        assert genes is not None
        right = true_effect[i] < 0
        ax.annotate(
            str(genes[i]), (true_effect[i], first[i]), xytext=(5 if right else -5, 3), textcoords="offset points", fontsize=8,
            ha="left" if right else "right",
        )  # fmt: skip
    ax.set(xlabel="true effect (log1p of counts per 10,000)", ylabel="predicted effect")
    entitle(ax, title or "effect on each gene")
    ax.legend(frameon=False, loc="upper left", handletextpad=0.2)
    return finish(ax, show, save)


def interactions(
    model: CounterFlow,
    perturbations: Sequence[str],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Heat map of all pairs of `perturbations`: how strong the predicted effect of the pair is along the sum of its parts' effects.

    1: as strong as the sum. Above: the parts help each other (synergy); below: they stand in each other's way or do the same (buffering,
    redundancy). It is the slope of the pair's effect on the sum over genes; a pair can be off the sum in direction, too, which this number
    does not show. Effects are means over the contexts of the model's controls.
    """
    pairs = list(combinations(perturbations, 2))
    if not pairs:
        raise DataError("interactions needs at least two perturbations")
    delimiter = model.setup.delimiter
    names = {pair: delimiter.join(pair) for pair in pairs}
    table = model.predict_effect([*perturbations, *names.values()], interval=None)
    effects = table.groupby(["condition", "gene"], sort=False, observed=True)["effect"].mean().unstack("gene")
    slopes = pd.DataFrame(np.nan, index=list(perturbations), columns=list(perturbations))
    for (first, second), name in names.items():
        total = (effects.loc[first] + effects.loc[second]).to_numpy()
        slope = float(effects.loc[_called(effects, name, delimiter)].to_numpy() @ total / (total @ total))
        slopes.loc[first, second] = slopes.loc[second, first] = slope
    ax = begin(ax)
    image = ax.imshow(slopes, cmap="PuOr_r", vmin=0, vmax=2)
    size = min(8, 24 * inches(ax) / len(slopes))
    for i, row in enumerate(slopes.to_numpy()):
        for j, value in enumerate(row):
            if np.isfinite(value):
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=size, color="black" if 0.4 < value < 1.6 else "white")
    ax.set_xticks(range(len(slopes)), list(slopes.columns), rotation=45, ha="right")
    ax.set_yticks(range(len(slopes)), list(slopes.index))
    entitle(ax, title or "effect of pairs along the sum of their parts (1: additive)")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return finish(ax, show, save)


def _called(effects: pd.DataFrame, name: str, delimiter: str) -> str:
    """The row of a pair, whose parts may come in another order."""
    parts = sorted(name.split(delimiter))
    return next(str(row) for row in effects.index if sorted(str(row).split(delimiter)) == parts)
