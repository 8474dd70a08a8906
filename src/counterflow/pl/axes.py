"""What every plot begins and ends with. Colours are Okabe and Ito's: told apart by people who see colours differently."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"control": "#999999", "real": "#0072B2", "predicted": "#D55E00"}
MARKERS = {"control": "o", "real": "o", "predicted": "^"}
SERIES = (("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "o"), ("#0072B2", "P"))


def begin(ax: Axes | None) -> Axes:
    """The axes given, or new ones that no pyplot window keeps alive."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.8, 4.2), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend_below(ax: Axes, columns: int) -> None:
    """The legend under the axes, where no cell can hide behind it."""
    size = 9 if ax.get_window_extent().width / ax.figure.dpi > 3.2 else 7
    ax.legend(
        frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=size, handletextpad=0.2, columnspacing=1.0
    )


def finish(ax: Axes, show: bool, save: str | os.PathLike[str] | None) -> Axes:
    """Save and show, if wanted."""
    if save is not None:
        ax.get_figure(root=True).savefig(save, dpi=150)  # type: ignore[union-attr]
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    return ax
