"""What every plot begins and ends with. Colours are Okabe and Ito's: told apart by people who see colours differently."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


def entitle(ax: Axes, text: str) -> None:
    """A title in as many lines as the width of the axes asks for."""
    size = 10 if inches(ax) > 3.4 else 9
    characters = max(12, int(inches(ax) * 72 / (0.52 * size)))
    ax.set_title("\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, characters)), fontsize=size)


def legend_below(ax: Axes, columns: int, room: float = 34) -> None:
    """The legend under the axes, where no cell can hide behind it; `room`: points for tick labels and the label of the axis."""
    size = 9 if inches(ax) > 3.4 else 7
    ax.legend(
        frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=room / size, fontsize=size,
        handletextpad=0.2, columnspacing=1.0, markerscale=1.3,
    )  # fmt: skip


def slanted(ax: Axes, words: Sequence[str]) -> float:
    """Turn the names under the axes where they are too long to stand side by side; the points that they take."""
    longest = 6.2 * max(map(len, words), default=0)  # points, at the usual size
    if longest < 72 * inches(ax) / max(1, len(words)) - 4:
        return 20
    for label in ax.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    return 16 + 0.78 * longest


def inches(ax: Axes) -> float:
    """Width of the axes."""
    figure: Any = ax.get_figure(root=True)
    return ax.get_position().width * figure.get_figwidth()


def finish(ax: Axes, show: bool, save: str | os.PathLike[str] | None) -> Axes:
    """Save and show, if wanted."""
    if save is not None:
        ax.get_figure(root=True).savefig(save, dpi=150)  # type: ignore[union-attr]
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    return ax
