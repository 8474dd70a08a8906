"""Draw the pictures of ``docs/concepts.md`` with the package's own flow: this script writes the SVG files beside it.

No network is trained: between single cells the velocity that a perfect network would learn is known, a weighted mean over the pairs.
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from counterflow.flow.coupling import couple
from counterflow.flow.path import interpolate
from counterflow.flow.solvers import euler, midpoint
from counterflow.types import Velocity

HERE = Path(__file__).parent
CONTROL, PERTURBED, PATH, POINT = "#777777", "#D55E00", "#0072B2", "#009E73"
LARGE, SMALL = 42, 16


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Control cells of two states, and perturbed cells of the same two, moved up."""
    draw = torch.Generator().manual_seed(seed)
    state = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[torch.arange(n) % 2]
    return state + 0.22 * torch.randn(n, 2, generator=draw), state + torch.tensor([0.35, 2.2]) + 0.22 * torch.randn(n, 2, generator=draw)


def perfect(x0: Tensor, x1: Tensor, width: float = 0.1) -> Velocity:
    """The mean velocity of the lines that pass a point: what least squares learns from the pairs (x0, x1)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        at, along = interpolate(x0, x1, t)
        weight = (-torch.cdist(x, at).square() / (2 * width**2)).softmax(dim=1)
        return weight @ along

    return velocity


def trace(velocity: Velocity, x: Tensor, n: int = 60) -> Tensor:
    """Points along the flow [n + 1, cells, 2]."""
    ts = torch.linspace(0, 1, n + 1)
    points = [x]
    for step in range(n):
        points.append(midpoint(velocity, points[-1], ts[step : step + 2]))
    return torch.stack(points)


def lines(ax: Axes, x0: Tensor, x1: Tensor, title: str) -> None:
    """Pairs, joined."""
    for a, b in zip(x0[:LARGE], x1[:LARGE], strict=True):
        ax.plot(*torch.stack([a, b]).T.numpy(), color=PATH, linewidth=0.6, alpha=0.7)
    both(ax, x0, x1, title)


def both(ax: Axes, x0: Tensor, x1: Tensor, title: str) -> None:
    """Control and perturbed cells."""
    ax.scatter(*x0.T.numpy(), s=SMALL, color=CONTROL, edgecolors="white", linewidths=0.4, zorder=3)
    ax.scatter(*x1.T.numpy(), s=SMALL, color=PERTURBED, marker="^", edgecolors="white", linewidths=0.4, zorder=3)
    ax.set_title(title, fontsize=11)
    ax.set_aspect("equal")
    ax.axis("off")


def the_line() -> None:
    """One pair, one point of its line, and the velocity."""
    x0, x1, t = torch.tensor([0.0, 0.0]), torch.tensor([3.6, 1.2]), 0.4
    x_t, velocity = interpolate(x0[None], x1[None], torch.tensor(t))
    figure, ax = plt.subplots(figsize=(5.6, 2.2), layout="constrained")
    ax.plot(*torch.stack([x0, x1]).T.numpy(), color=PATH, linewidth=1.2, linestyle=(0, (4, 3)))
    tip, arrow = (x_t[0] + 0.33 * velocity[0]).tolist(), {"arrowstyle": "-|>", "color": POINT, "lw": 2.2}
    ax.annotate("", xy=tip, xytext=x_t[0].tolist(), arrowprops=arrow)
    ax.scatter(*x0.numpy(), s=70, color=CONTROL, zorder=3)
    ax.scatter(*x1.numpy(), s=80, color=PERTURBED, marker="^", zorder=3)
    ax.scatter(*x_t[0].numpy(), s=60, color=POINT, zorder=4)
    ax.text(-0.12, -0.12, "x0: a control cell\nt = 0", ha="right", va="center", fontsize=11)
    ax.text(3.75, 1.2, "x1: a perturbed cell\nt = 1", ha="left", va="center", fontsize=11)
    ax.text(1.5, 0.22, "x_t = (1 − t) x0 + t x1", ha="left", va="top", fontsize=11, color=POINT)
    ax.text(2.25, 1.05, "velocity = x1 − x0", ha="right", va="bottom", fontsize=11, color=POINT)
    ax.set_xlim(-1.7, 5.6)
    ax.set_ylim(-0.5, 1.6)
    ax.axis("off")
    keep(figure, "line")


def pairing() -> None:
    """Random pairs and those of optimal transport, and where a perfect network takes the cells."""
    x0, x1 = clouds(300, seed=0)
    same, draw = torch.zeros(len(x0), dtype=torch.long), torch.Generator().manual_seed(1)
    figure, axes = plt.subplots(2, 2, figsize=(6.6, 5.4), layout="constrained")
    for (ax, after), coupling, name in zip(axes, ("independent", "ot"), ("random pairs", "optimal transport"), strict=True):
        paired = couple(coupling, x0, x1, same, draw)
        lines(ax, paired[:LARGE], x1[:LARGE], name)
        paths = trace(perfect(paired, x1), x0[:LARGE])
        for cell in range(LARGE):
            after.plot(*paths[:, cell].T.numpy(), color=PATH, linewidth=0.6, alpha=0.7)
        both(after, x0[:LARGE], paths[-1], "and what is learnt from them")
    keep(figure, "pairing")


def steps() -> None:
    """Straight paths need few steps."""
    x0, x1 = clouds(300, seed=0)
    same = torch.zeros(len(x0), dtype=torch.long)
    figure, ax = plt.subplots(figsize=(4.4, 2.8), layout="constrained")
    for coupling, name, colour, marker in (("independent", "random pairs", CONTROL, "o"), ("ot", "optimal transport", PATH, "s")):
        paired = couple(coupling, x0, x1, same, torch.Generator().manual_seed(1))
        velocity = perfect(paired, x1)
        best = midpoint(velocity, x0, torch.linspace(0, 1, 201))
        counts = (1, 2, 4, 8, 16, 32)
        errors = [float((euler(velocity, x0, torch.linspace(0, 1, n + 1)) - best).square().mean().sqrt()) for n in counts]
        ax.loglog(counts, errors, color=colour, marker=marker, label=name)
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_xlabel("Euler steps")
    ax.set_ylabel("distance to the exact end")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    keep(figure, "steps")


def keep(figure: plt.Figure, name: str) -> None:
    """As NAME.svg."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "counterflow", "svg.fonttype": "path"}
    the_line()
    pairing()
    steps()
