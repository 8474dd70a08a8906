"""How a cost grows."""

from __future__ import annotations

import os
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from counterflow.errors import DataError
from counterflow.pl.axes import SERIES, begin, finish

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def scaling(
    costs: pd.DataFrame, x: str, y: str, *, by: str | None = None, ax: Axes | None = None, show: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> Axes:  # fmt: skip
    """`y` against `x` on two logarithmic axes, one line for each value of `by`, with the slope between its last two points (1: linear)."""
    missing = [name for name in (x, y, by) if name is not None and name not in costs]
    if missing:
        raise DataError(f"no column {missing[0]!r} in the table; it has {', '.join(map(str, costs.columns))}")
    if (costs[[x, y]] <= 0).any(axis=None):
        raise DataError(f"{x} and {y} must be positive for logarithmic axes")
    ax = begin(ax)
    groups = [("", costs)] if by is None else list(costs.groupby(by, sort=False))
    for (name, rows), (colour, marker) in zip(groups, cycle(SERIES)):
        rows = rows.sort_values(x)
        at, cost = rows[x].to_numpy(float), rows[y].to_numpy(float)
        slope = f"slope {np.log(cost[-1] / cost[-2]) / np.log(at[-1] / at[-2]):.2f}" if len(at) > 1 else ""
        ax.loglog(at, cost, marker=marker, color=colour, ms=5, label=f"{name!s} {slope}".strip())
    values = np.unique(costs[x].to_numpy(float))
    if len(values) <= 6:  # the values themselves; names of half decades would run into each other
        ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.set(xlabel=x, ylabel=y)
    ax.legend(frameon=False)
    return finish(ax, show, save)
