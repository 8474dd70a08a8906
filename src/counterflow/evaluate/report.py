"""One self-contained HTML file: the verdict in words first, then S, the table, every condition, and how it was made."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterflow.evaluate.coverage import SHOWN_LEVEL, by_support
from counterflow.evaluate.plots import (
    coverage_curve,
    dot_plot,
    example_cells,
    example_effects,
    example_genes,
    example_names,
    learning_curve,
    scatter,
    shown_methods,
)  # fmt: skip
from counterflow.evaluate.scoring import CEILING
from counterflow.evaluate.table import BASELINE, UNIT, Table, arrow, self_test_text
from counterflow.evaluate.verdict import faults, findings, headline, judgement, overall, reproduced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CONDITIONS = 400  # rows of the table of conditions; the CSV beside the report has all


def write_report(table: Table, file: str | os.PathLike[str], *, title: str = "Comparison on held-out conditions") -> None:
    """Write the report of `table`; it needs no other file and no network."""
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(TEMPLATE)
    metrics = list(headline(table).values())
    summary = table.summary(metrics) if metrics else pd.DataFrame()
    text = page.render(
        title=title,
        overall=overall(table),
        questions=list(headline(table)),
        cards=[_card(table, model) for model in table.models],
        where=_where(table),
        dots=_svg(dot_plot(table, summary)) if len(summary) else "",
        scatters=[(metric, _svg(scatter(table, metric))) for metric in metrics] if table.models else [],
        header=[(metric, arrow(metric)) for metric in table.metrics],
        rows=_cells(table),
        costs=table.costs.to_dict("records"),
        conditions=_conditions(table, metrics),
        thirds=_thirds(table, metrics),
        examples=_examples(table, metrics),
        curves=[(metric, _svg(learning_curve(table, metric))) for metric in metrics] if len(table.learning_curve) else [],
        sure=by_support(table.coverage).to_dict("records") if len(table.coverage) else [],
        sure_level=f"{SHOWN_LEVEL:.0%}",
        sure_plot=_svg(coverage_curve(table)) if len(table.coverage) else "",
        metrics=metrics,
        self_tests=[(name, self_test_text(values)) for name, values in table.self_test.items()],
        notes=table.notes,
    )
    Path(file).write_text(text, encoding="utf-8")


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
            detail += f" ±{row['seed_sd']:.2g} over seeds" if np.isfinite(row["seed_sd"]) and row["seed_sd"] else ""
            detail += f" [{row['lo']:.3g}, {row['hi']:.3g}]" if np.isfinite(row["lo"]) else ""
            cells.append({"text": f"{row['value']:.3f}", "detail": detail, "best": bool(row["best_baseline"])})
        result.append({"method": method, "kind": kinds[method], "cells": cells})
    return result


MARKS = {"better": "▲", "even": "=", "worse": "▼"}


def _card(table: Table, model: str) -> dict[str, Any]:
    """What the first screen says of a model: what to do, and for each question its score beside the best simple baseline's."""
    found, wrong = findings(table, model), faults(table, model)
    badge, lead = judgement(found, bool(wrong), reproduced(table))
    cells = []
    by_question = {finding.question: finding for finding in found}
    for question in headline(table):
        finding = by_question.get(question)
        if finding is None:
            cells.append({"outcome": "", "text": "n/a", "detail": ""})
            continue
        detail = f"{finding.baseline} {finding.baseline_value:.3f}; ceiling {finding.ceiling:.3f}"
        cells.append({"outcome": finding.outcome, "text": f"{MARKS[finding.outcome]} {finding.value:.3f}", "detail": detail})
    return {"model": model, "badge": badge, "kind": badge.split()[0].lower(), "why": " ".join([lead, *wrong]), "cells": cells,
            "words": table.verdict(model)}  # fmt: skip


def _examples(table: Table, metrics: list[str]) -> list[tuple[str, list[str]]]:
    """Example condition -> its figures."""
    methods = shown_methods(table, metrics[0]) if metrics else []
    draw = (example_cells, example_effects, example_genes)
    of_example = {name: [method for method in methods if method in drawn] for name, drawn in example_names(table).items()}
    return [(name, [_svg(figure(table, name, shown)) for figure in draw]) for name, shown in of_example.items() if shown]


def _thirds(table: Table, metrics: list[str]) -> list[dict[str, Any]]:
    """Strong, middle and weak effects apart: models, floor, the best simple baselines and the ceiling."""
    thirds = table.by_effect_size(metrics)
    if thirds.empty:
        return []
    shown = {*table.models, BASELINE, CEILING, *(table.best_baseline(metric) for metric in metrics)}
    result = []
    for row in thirds[thirds["method"].isin(shown)].to_dict("records"):
        values = [f"{row[metric]:.3f}" if np.isfinite(row[metric]) else "n/a" for metric in metrics]
        kind = "model" if row["method"] in table.models else ""
        result.append({"third": f"{row['third']} ({row['conditions']})", "method": row["method"], "kind": kind, "values": values})
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
th small{display:block;font-weight:400;color:#6b7885}.cards td{vertical-align:top}td.badge{text-align:left;font-weight:700}
td.better{color:#1f6b3f}td.worse{color:#b3261e}.badge.use{color:#1f6b3f}.badge.do{color:#b3261e}.badge.mixed{color:#9a5b00}
.fail{color:#b3261e;font-weight:700}details{margin:.6rem 0}p.lead{color:#52606d;margin:.2rem 0}
</style></head><body>
<h1>{{ title }}</h1>
<p class="lead">{{ where }}</p>
<div class="verdict">{{ overall }}</div>
{% if cards %}<div class="wide"><table class="cards"><tr><th>model</th><th></th>
{% for question in questions %}<th>{{ question }}<small>{{ metrics[loop.index0] }}</small></th>{% endfor %}</tr>
{% for card in cards %}<tr><td>{{ card.model }}</td><td class="badge {{ card.kind }}">{{ card.badge }}</td>
{% for c in card.cells %}<td class="{{ c.outcome }}">{{ c.text }}<small>{{ c.detail }}</small></td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="lead">▲ better, = not told apart, ▼ worse than the best simple baseline (signed-rank test over conditions, p < .05; below six
conditions the sign alone). Small print: the best simple baseline of that metric, and the ceiling.</p>
<details{% if cards | length < 4 %} open{% endif %}><summary>In words</summary>
{% for card in cards %}<p><b>{{ card.model }}</b>: {{ card.words }}</p>{% endfor %}</details>{% endif %}
{% for name, text in self_tests if 'NOT' in text %}<p class="fail">Self-test of the scoring PCA, {{ name }}: {{ text }}</p>{% endfor %}
{% if dots %}<h2>Between one generic response and repeating the experiment</h2><div class="wide">{{ dots | safe }}</div>{% endif %}
<h2>All scores</h2>
<p class="lead">Mean over held-out conditions; below it S and the 95 % bootstrap interval over conditions. Bold: the best simple baseline.
Red rows are models, the green row is the ceiling (one half of the real cells against the other).</p>
<div class="wide"><table><tr><th>method</th>{% for name, arrow in header %}<th>{{ name }} {{ arrow }}</th>{% endfor %}</tr>
{% for row in rows %}<tr class="{{ row.kind }}"><td>{{ row.method }}</td>
{% for c in row.cells %}<td{% if c.best %} class="best"{% endif %}>{{ c.text }}<small>{{ c.detail }}</small></td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if thirds %}<h2>Strong and weak effects apart</h2>
<p class="lead">Thirds of the conditions by the size of the real effect: a mean over all of them hides regimes.</p>
<div class="wide"><table><tr><th>effect</th><th>method</th>{% for name in metrics %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in thirds %}<tr class="{{ row.kind }}"><td>{{ row.third }}</td><td>{{ row.method }}</td>
{% for v in row['values'] %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
{% if sure %}<h2>How sure the predictions are</h2>
<p class="lead">Intervals of predicted effects, learnt on training conditions that were left out, against the effects measured on the
held-out cells: the {{ sure_level }} interval should hold {{ sure_level }} of them. Top: the genes of the largest predicted effects. Width:
to either side, in log expression. Not zero, beyond rule: genes whose interval leaves out no effect, and what the best simple rule
says.</p>
<div class="wide"><table><tr><th>conditions</th><th>method</th><th>number</th><th>covered</th><th>covered, top</th><th>width</th>
<th>not zero</th><th>beyond rule</th></tr>
{% for row in sure %}<tr><td>{{ row.which }}</td><td>{{ row.method }}</td><td>{{ row.conditions }}</td>
<td>{{ '%.1f %%' | format(100 * row.covered) }}</td><td>{{ '%.1f %%' | format(100 * row.top_covered) }}</td>
<td>{{ '%.3f' | format(row.width) }}</td><td>{{ '%.1f %%' | format(100 * row.excludes_zero) }}</td>
<td>{{ '%.1f %%' | format(100 * row.beyond_baseline) }}</td></tr>{% endfor %}</table></div>
<div class="wide">{{ sure_plot | safe }}</div>{% endif %}
{% if costs %}<h2>Costs</h2><div class="wide"><table><tr>{% for key in costs[0] %}<th>{{ key }}</th>{% endfor %}</tr>
{% for row in costs %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
{% if scatters %}<h2>Condition by condition</h2>
<p class="lead">Dark: the strongest third of the real effects. On the line a model is as good as the best simple baseline.</p>
{% for metric, plot in scatters %}<h3>{{ metric }}</h3><div class="wide">{{ plot | safe }}</div>{% endfor %}{% endif %}
{% for name, plots in examples %}<h2>Example: {{ name }}</h2>
<p class="lead">Cells on the principal components of the control and real cells (means outlined); effects and log expression of the genes
that really change most. Examples are the conditions of the strongest, middle and weakest real effect.</p>
{% for plot in plots %}<div class="wide">{{ plot | safe }}</div>{% endfor %}{% endfor %}
{% if curves %}<h2>How many training conditions it takes</h2>
{% for metric, plot in curves %}<div class="wide">{{ plot | safe }}</div>{% endfor %}{% endif %}
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
