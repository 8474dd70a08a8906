"""One self-contained HTML file: the verdict in words first, then S, the table, every condition, and how it was made."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterflow.evaluate.scoring import CEILING
from counterflow.evaluate.table import BASELINE, UNIT, Table, arrow, badness, self_test_text
from counterflow.evaluate.verdict import headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CONDITIONS = 400  # rows of the table of conditions; the CSV beside the report has all
THIRD_COLOURS = {"weak": "#b9c7d6", "middle": "#5b8db8", "strong": "#123a5e", "all": "#5b8db8"}


def write_report(table: Table, file: str | os.PathLike[str], *, title: str = "Comparison on held-out conditions") -> None:
    """Write the report of `table`; it needs no other file and no network."""
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(TEMPLATE)
    metrics = list(headline(table).values())
    summary = table.summary(metrics) if metrics else pd.DataFrame()
    text = page.render(
        title=title,
        verdicts=[(model, table.verdict(model)) for model in table.models],
        where=_where(table),
        dots=_svg(dot_plot(table, summary)) if len(summary) else "",
        scatters=[(metric, _svg(scatter(table, metric))) for metric in metrics] if table.models else [],
        header=[(metric, arrow(metric)) for metric in table.metrics],
        rows=_cells(table),
        costs=table.costs.to_dict("records"),
        conditions=_conditions(table, metrics),
        metrics=metrics,
        self_tests=[(name, self_test_text(values)) for name, values in table.self_test.items()],
        notes=table.notes,
    )
    Path(file).write_text(text, encoding="utf-8")


def dot_plot(table: Table, summary: pd.DataFrame) -> Figure:
    """S of every method, one panel per metric: the mean baseline at 0, the ceiling at 1."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(summary["metric"]))
    methods = [name for name in dict.fromkeys(table.rows["method"]) if name != CEILING][::-1]
    figure = Figure(figsize=(2.1 * len(metrics) + 1.6, 0.26 * len(methods) + 1.1), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axis, metric in zip(axes, metrics, strict=True):
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
    figure.supxlabel("S: 0 = one generic response, 1 = repeating the experiment (dots beyond the frame carry their value)", fontsize=7)
    return figure


def scatter(table: Table, metric: str) -> Figure:
    """Every held-out condition: a model against the best simple baseline, coloured by the size of the real effect."""
    from matplotlib.figure import Figure

    best, wide = table.best_baseline(metric), table.per_condition(metric)
    figure = Figure(figsize=(2.6 * max(1, len(table.models)), 2.7), layout="constrained")
    third = table.rows.drop_duplicates(UNIT).set_index(UNIT)["third"]
    for axis, model in zip(np.atleast_1d(figure.subplots(1, max(1, len(table.models)), squeeze=True)), table.models, strict=True):
        if best is None or model not in wide:
            axis.set_axis_off()
            continue
        both = wide[[best, model]].dropna()
        colours = [THIRD_COLOURS.get(str(third.get(unit)), "#5b8db8") for unit in both.index]
        axis.scatter(both[best], both[model], c=colours, s=18, zorder=3)
        lo, hi = float(np.nanmin(both.to_numpy(), initial=0)), float(np.nanmax(both.to_numpy(), initial=0.01))
        axis.plot([lo, hi], [lo, hi], color="#999", lw=0.8)
        axis.set_xlabel(f"{best} (best simple baseline)", fontsize=7)
        axis.set_ylabel(model, fontsize=7)
        won = (badness(metric, both[model].to_numpy()) < badness(metric, both[best].to_numpy())).mean() if len(both) else np.nan
        axis.set_title(f"better in {won:.0%} of {len(both)}" if len(both) else "", fontsize=8)
        axis.tick_params(labelsize=6)
    return figure


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "counterflow", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _where(table: Table) -> str:
    names = [" / ".join(filter(None, map(str, pair))) for pair in table.rows[["dataset", "split"]].drop_duplicates().to_numpy()]
    n = len(table.rows.drop_duplicates(UNIT))
    return f"{n} held-out condition{'s' if n != 1 else ''} ({', '.join(filter(None, names)) or 'one split'})"


def _cells(table: Table) -> list[dict[str, Any]]:
    summary = table.summary()
    found = {(row["method"], row["metric"]): row for row in summary.to_dict("records")}
    kinds = table.rows.drop_duplicates("method").set_index("method")["kind"]
    result = []
    for method in dict.fromkeys(table.rows["method"]):
        cells = []
        for metric in table.metrics:
            row = found.get((method, metric))
            if row is None or not np.isfinite(row["value"]):
                cells.append({"text": "n/a", "detail": "", "best": False})
                continue
            detail = f"S {row['S']:.2f}" if np.isfinite(row["S"]) else ""
            detail += f" [{row['lo']:.3g}, {row['hi']:.3g}]" if np.isfinite(row["lo"]) else ""
            cells.append({"text": f"{row['value']:.3f}", "detail": detail, "best": bool(row["best_baseline"])})
        result.append({"method": method, "kind": kinds[method], "cells": cells})
    return result


def _conditions(table: Table, metrics: list[str]) -> list[dict[str, Any]]:
    """Strongest effects first: what each model, its best baseline and the ceiling score on every condition."""
    shown = [*table.models, BASELINE, CEILING]
    wide = {metric: table.per_condition(metric) for metric in metrics}
    facts = table.rows.drop_duplicates(UNIT).set_index(UNIT)[["third", "n_cells", "stratum"]]
    order = facts["third"].map({"strong": 0, "middle": 1, "weak": 2}).fillna(0).sort_values(kind="stable").index[:MOST_CONDITIONS]
    rows = []
    for unit in order:
        values = [
            (method, [f"{wide[m].loc[unit, method]:.3f}" if unit in wide[m].index and method in wide[m] else "n/a" for m in metrics])
            for method in shown
            if method in set(table.rows["method"])
        ]
        rows.append({"name": " ".join(filter(None, map(str, unit[2:]))), **facts.loc[unit].to_dict(), "values": values})
    return rows


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1200px;padding:1rem 1.2rem;color:#1c2733}
h1{font-size:1.4rem;margin:.3rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
.verdict{border-left:4px solid #c8501e;background:#fbf3ee;padding:.6rem .9rem;margin:.6rem 0}
.wide{overflow-x:auto}.wide svg{max-width:none;height:auto}
table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e4e9ee;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
td small{display:block;color:#6b7885}tr.model td{background:#fbf3ee}tr.ceiling td{background:#eef6f0}td.best{font-weight:700}
.fail{color:#b3261e;font-weight:700}details{margin:.6rem 0}p.lead{color:#52606d;margin:.2rem 0}
</style></head><body>
<h1>{{ title }}</h1>
<p class="lead">{{ where }}</p>
{% for model, text in verdicts %}<div class="verdict"><b>{{ model }}</b>: {{ text }}</div>{% else %}
<div class="verdict">No model in this table: simple baselines, floor and ceiling only.</div>{% endfor %}
{% for name, text in self_tests if 'NOT' in text %}<p class="fail">Self-test of the scoring PCA, {{ name }}: {{ text }}</p>{% endfor %}
{% if dots %}<h2>Between one generic response and repeating the experiment</h2><div class="wide">{{ dots | safe }}</div>{% endif %}
<h2>All scores</h2>
<p class="lead">Mean over held-out conditions; below it S and the 95 % bootstrap interval over conditions. Bold: the best simple baseline.
Red rows are models, the green row is the ceiling (one half of the real cells against the other).</p>
<div class="wide"><table><tr><th>method</th>{% for name, arrow in header %}<th>{{ name }} {{ arrow }}</th>{% endfor %}</tr>
{% for row in rows %}<tr class="{{ row.kind }}"><td>{{ row.method }}</td>
{% for c in row.cells %}<td{% if c.best %} class="best"{% endif %}>{{ c.text }}<small>{{ c.detail }}</small></td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if costs %}<h2>Costs</h2><div class="wide"><table><tr>{% for key in costs[0] %}<th>{{ key }}</th>{% endfor %}</tr>
{% for row in costs %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
{% if scatters %}<h2>Condition by condition</h2>
<p class="lead">Dark: the strongest third of the real effects. On the line a model is as good as the best simple baseline.</p>
{% for metric, plot in scatters %}<h3>{{ metric }}</h3><div class="wide">{{ plot | safe }}</div>{% endfor %}{% endif %}
<details><summary>Every condition ({{ conditions | length }})</summary><div class="wide"><table>
<tr><th>condition</th><th>effect</th><th>cells</th><th>stratum</th><th>method</th>
{% for name in metrics %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in conditions %}{% for method, values in row['values'] %}
<tr><td>{{ row.name }}</td><td>{{ row.third }}</td><td>{{ row.n_cells }}</td><td>{{ row.stratum }}</td><td>{{ method }}</td>
{% for v in values %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}{% endfor %}</table></div></details>
<h2>How it was made</h2>
<p>Expression is log1p of counts per 10,000. Every row is scored against the same random half of the real cells, averaged over several
halvings; the ceiling is the other half. Effects are measured from the real controls of the same context, the perturbed gene is left out,
clouds are compared at equal numbers of cells, in principal components that saw neither the held-out cells nor the cells that predictions
start from. S = (model - mean baseline) / (ceiling - mean baseline).</p>
<ul>{% for name, text in self_tests %}<li>Self-test of the scoring PCA, {{ name }}: {{ text }}</li>{% endfor %}
{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
</body></html>
"""
