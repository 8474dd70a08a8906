"""What an evaluation or a comparison says, from its `Table`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from counterflow.errors import ConfigError, near
from counterflow.evaluate import plots
from counterflow.pl.axes import begin, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from counterflow.evaluate.table import Table


def scores(
    table: Table, metric: str = "pearson_delta", *, ax: Axes | None = None, show: bool = False, save: str | os.PathLike[str] | None = None
) -> Axes:
    """S of every method on one metric: the mean baseline at 0, repeating the experiment at 1."""
    ax = begin(ax)
    plots.draw_scores(ax, table, table.summary(), _known(table, metric))
    ax.set_xlabel("S: 0 = one generic response,\n1 = repeating the experiment", fontsize=8)
    return finish(ax, show, save)


def conditions(
    table: Table,
    metric: str = "pearson_delta",
    *,
    model: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Every held-out condition: a model (the first, if none is named) against the best simple baseline; darker: a larger real effect."""
    if not table.models:
        raise ConfigError("the table has no model, only simple baselines: nothing to set against them")
    model = table.models[0] if model is None else model
    if model not in table.models:
        raise ConfigError(f"no model {model!r} in the table: {near(model, table.models)}")
    ax = begin(ax)
    plots.draw_conditions(ax, table, _known(table, metric), model)
    return finish(ax, show, save)


def learning_curve(
    table: Table, metric: str = "pearson_delta", *, ax: Axes | None = None, show: bool = False, save: str | os.PathLike[str] | None = None
) -> Axes:
    """Mean over the held-out conditions against the number of training conditions."""
    if table.learning_curve.empty:
        raise ConfigError("the table has no learning curve: compare(..., learning_curve=(0.25, 0.5)) makes one")
    ax = begin(ax)
    plots.draw_learning_curve(ax, table, _known(table, metric))
    return finish(ax, show, save)


def coverage(table: Table, *, ax: Axes | None = None, show: bool = False, save: str | os.PathLike[str] | None = None) -> Axes:
    """Nominal level of the intervals against the share of measured effects they hold."""
    if table.coverage.empty:
        raise ConfigError("the table has no intervals: no model in it says how sure it is")
    ax = begin(ax)
    plots.draw_coverage(ax, table)
    return finish(ax, show, save)


def _known(table: Table, metric: str) -> str:
    if metric not in table.metrics:
        raise ConfigError(f"no metric {metric!r} in the table: {near(metric, list(table.metrics))}")
    return metric
