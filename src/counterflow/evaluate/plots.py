"""The figures of a report, from a `Table` alone: drawn without a window, colours of Okabe and Ito where methods are told apart."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterflow.evaluate.scoring import CEILING
from counterflow.evaluate.table import UNIT, Table, arrow, badness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THIRD_COLOURS = {"weak": "#b9c7d6", "middle": "#5b8db8", "strong": "#123a5e", "all": "#5b8db8"}
COLOURS = {"control": "#999999", "real": "#0072B2", "predicted": "#D55E00"}
LINES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#000000")


def dot_plot(table: Table, summary: pd.DataFrame) -> Figure:
    """S of every method, one panel per metric: the mean baseline at 0, the ceiling at 1."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(summary["metric"]))
    methods = _scored(table)
    figure = Figure(figsize=(2.1 * len(metrics) + 1.6, 0.26 * len(methods) + 1.1), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axis, metric in zip(axes, metrics, strict=True):
        draw_scores(axis, table, summary, metric)
    figure.supxlabel("S: 0 = one generic response, 1 = repeating the experiment (dots beyond the frame carry their value)", fontsize=7)
    return figure


def _scored(table: Table) -> list[str]:
    return [name for name in dict.fromkeys(table.rows["method"]) if name != CEILING][::-1]


def draw_scores(axis: Axes, table: Table, summary: pd.DataFrame, metric: str) -> None:
    """S of every method on one metric."""
    methods = _scored(table)
    score = summary[summary["metric"] == metric].set_index("method")["S"].reindex(methods)
    shown = score.clip(-1, 1.5)
    colours = ["#c8501e" if name in table.models else "#7a8793" for name in methods]
    axis.axvline(0, color="#999", lw=0.8)
    axis.axvline(1, color="#2c7a4b", lw=0.8, ls="--")
    axis.scatter(shown, range(len(methods)), c=colours, s=26, zorder=3)
    for y, (value, at) in enumerate(zip(score, shown, strict=True)):
        if np.isfinite(value) and value != at:
            axis.annotate(f"{value:.1f}", (at, y), textcoords="offset points", xytext=(7, -3) if at < 0 else (-22, -3), fontsize=6)
    axis.set(xlim=(-1.15, 1.65), title=metric, yticks=range(len(methods)), yticklabels=methods)
    axis.title.set_fontsize(8)
    axis.tick_params(labelsize=7)
    axis.grid(axis="y", color="#eee", lw=0.6)


def scatter(table: Table, metric: str) -> Figure:
    """Every held-out condition: a model against the best simple baseline, coloured by the size of the real effect."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * max(1, len(table.models)), 2.7), layout="constrained")
    for axis, model in zip(np.atleast_1d(figure.subplots(1, max(1, len(table.models)), squeeze=True)), table.models, strict=True):
        draw_conditions(axis, table, metric, model)
    return figure


def draw_conditions(axis: Axes, table: Table, metric: str, model: str) -> None:
    """One model against the best simple baseline; an empty frame where there is no baseline."""
    best, wide = table.best_baseline(metric), table.per_condition(metric)
    if best is None or model not in wide:
        axis.set_axis_off()
        return
    third = table.rows.drop_duplicates(UNIT).set_index(UNIT)["third"]
    both = wide[[best, model]].dropna()
    colours = [THIRD_COLOURS.get(str(third.get(unit)), "#5b8db8") for unit in both.index]
    axis.scatter(both[best], both[model], c=colours, s=18, zorder=3)
    lo, hi = float(np.nanmin(both.to_numpy(), initial=0)), float(np.nanmax(both.to_numpy(), initial=0.01))
    axis.plot([lo, hi], [lo, hi], color="#999", lw=0.8)
    axis.locator_params(nbins=5)
    axis.set_xlabel(f"{best} (best simple baseline)", fontsize=7)
    axis.set_ylabel(model, fontsize=7)
    won = (badness(metric, both[model].to_numpy()) < badness(metric, both[best].to_numpy())).mean() if len(both) else np.nan
    axis.set_title(f"better in {won:.0%} of {len(both)}" if len(both) else "", fontsize=8)
    axis.tick_params(labelsize=6)


def example_names(table: Table) -> dict[str, set[str]]:
    """The example conditions, strongest effect first, and the methods whose cells were kept."""
    cells = table.examples.cells
    return {} if cells.empty else {str(name): set(of_name) for name, of_name in cells["method"].groupby(_title(cells), sort=False)}


def example_cells(table: Table, example: str, methods: list[str]) -> Figure:
    """Cells of one condition on the principal components of its control and real cells; one panel per method."""
    figure, axes = _panels(len(methods), 2.5, 2.5)
    cells = table.examples.cells[_title(table.examples.cells) == example]
    xy = cells[cells["feature"].isin(["PC1", "PC2"])].pivot_table(index=["method", "cell"], columns="feature", values="value")
    for axis, method in zip(axes, methods, strict=True):
        for name, which in (("control", "control"), ("real", "real"), ("predicted", method)):
            points = xy.loc[[which]]
            axis.scatter(points["PC1"], points["PC2"], s=7, c=COLOURS[name], alpha=0.55, linewidths=0, label=name)
        for name, which in (("control", "control"), ("real", "real"), ("predicted", method)):
            centre = xy.loc[[which]].mean()
            axis.scatter(centre["PC1"], centre["PC2"], s=60, c=COLOURS[name], edgecolors="black", linewidths=1, zorder=3)
        axis.set_title(method, fontsize=8)
        axis.set(xticks=[], yticks=[], xlabel="PC1", ylabel="PC2")
    _legend(figure, axes)
    return figure


def example_effects(table: Table, example: str, methods: list[str]) -> Figure:
    """Predicted against real effect of the 20 genes that really change most."""
    figure, axes = _panels(len(methods), 2.5, 2.5)
    effects = table.examples.effects[_title(table.examples.effects) == example]
    for axis, method in zip(axes, methods, strict=True):
        rows = effects[effects["method"] == method]
        axis.axline((0, 0), slope=1, color="#999", lw=0.8)
        axis.axhline(0, color="#ddd", lw=0.6)
        axis.axvline(0, color="#ddd", lw=0.6)
        axis.scatter(rows["real"], rows["predicted"], s=14, c=COLOURS["predicted"], zorder=3, linewidths=0)
        strongest = rows.reindex(rows["real"].abs().sort_values(ascending=False).index)[:4]
        for row in strongest.itertuples():
            axis.annotate(str(row.gene), (row.real, row.predicted), xytext=(3, 3), textcoords="offset points", fontsize=6)
        axis.set_title(method, fontsize=8)
        axis.set_xlabel("real effect", fontsize=7)
        axis.tick_params(labelsize=6)
    axes[0].set_ylabel("predicted effect", fontsize=7)
    return figure


def example_genes(table: Table, example: str, methods: list[str]) -> Figure:
    """Violins of the genes that really change most: control, real, then each method."""
    cells = table.examples.cells[_title(table.examples.cells) == example]
    genes = [name for name in dict.fromkeys(cells["feature"]) if name not in ("PC1", "PC2")]
    figure, axes = _panels(len(genes), 0.9 + 0.3 * (len(methods) + 2), 2.4)
    names = ["control", "real", *methods]
    for axis, gene in zip(axes, genes, strict=True):
        values = [cells["value"][(cells["feature"] == gene) & (cells["method"] == name)].to_numpy() for name in names]
        bodies: Any = axis.violinplot(values, showextrema=False, widths=0.85)["bodies"]
        for name, body, of_name in zip(names, bodies, values, strict=True):
            body.set(facecolor=COLOURS.get(name, COLOURS["predicted"]), alpha=0.7, linewidth=0)
            axis.scatter([names.index(name) + 1], [of_name.mean()], c="black", s=8, zorder=3)
        axis.set_xticks(range(1, len(names) + 1), names, rotation=90, fontsize=6)
        axis.set_title(gene, fontsize=8)
        axis.tick_params(axis="y", labelsize=6)
    axes[0].set_ylabel("log expression", fontsize=7)
    return figure


def learning_curve(table: Table, metric: str) -> Figure:
    """Mean over the held-out conditions against the number of training conditions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3), layout="constrained")
    draw_learning_curve(figure.subplots(), table, metric)
    return figure


def draw_learning_curve(axis: Axes, table: Table, metric: str) -> None:
    """Models, the best simple baseline and the ceiling."""
    curve = table.learning_curve[table.learning_curve["metric"] == metric]
    best = table.best_baseline(metric)
    colours = dict(zip(table.models, cycle(LINES), strict=False)) | ({best: "#7a8793"} if best else {})
    for name, colour in colours.items():
        points = curve[curve["method"] == name].sort_values("conditions")
        axis.plot(points["conditions"], points["value"], marker="o", ms=4, color=colour, ls="--" if name == best else "-", label=name)
    ceiling = curve["value"][(curve["method"] == CEILING) & (curve["share"] == 1)]
    if len(ceiling):
        axis.axhline(float(ceiling.iloc[0]), color="#2c7a4b", lw=0.8, ls=":", label="ceiling")
    axis.set(xlabel="training conditions", ylabel=f"{metric} {arrow(metric)}")
    axis.legend(frameon=False, fontsize=7)
    axis.tick_params(labelsize=7)


def coverage_curve(table: Table) -> Figure:
    """Nominal level of the intervals against the share of measured effects they hold: one line per model, one dot per condition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    draw_coverage(figure.subplots(), table)
    return figure


def draw_coverage(axis: Axes, table: Table) -> None:
    """All models of a table."""
    axis.axline((0, 0), slope=1, color="#999", lw=0.8)
    for (name, rows), colour in zip(table.coverage.groupby("method", sort=False), cycle(LINES)):
        axis.scatter(rows["level"], rows["covered"], s=7, color=colour, alpha=0.25, linewidths=0)
        means = rows.groupby("level")[["covered", "top_covered"]].mean()
        axis.plot(means.index, means["covered"], color=colour, marker="o", ms=4, label=name)
        axis.plot(means.index, means["top_covered"], color=colour, ls="--", lw=1)
    axis.plot([], [], color="#444", ls="--", lw=1, label="genes of the largest predicted effects")
    axis.set(xlabel="nominal level of the interval", ylabel="measured effects inside", xlim=(0.45, 1.0), ylim=(0.0, 1.02))
    axis.legend(frameon=False, fontsize=7, loc="lower right")
    axis.tick_params(labelsize=7)


def shown_methods(table: Table, metric: str, most: int = 6) -> list[str]:
    """Models, then the best simple baseline: what an example is drawn for."""
    best = table.best_baseline(metric)
    drawn = set() if table.examples.cells.empty else set(table.examples.cells["method"])
    return [name for name in [*table.models[:most], *([best] if best else [])] if name in drawn]


def _title(frame: pd.DataFrame) -> pd.Series:
    split = frame["split"] if frame["split"].nunique() > 1 else ""
    words = frame["dataset"] + " " + split + " " + frame["condition"] + " " + frame["context"]
    return words.str.replace(r" +", " ", regex=True).str.strip()


def _panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * max(1, n), height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, max(1, n), sharex=False)).ravel())


def _legend(figure: Figure, axes: list[Axes]) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
