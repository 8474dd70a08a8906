"""One self-contained HTML file: the verdict in words first, then S, the table, every condition, and how it was made."""

from __future__ import annotations

import os
from collections.abc import Callable
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
from counterflow.page.figures import figure_svg
from counterflow.page.render import render

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

MOST_CONDITIONS = 400  # rows of the table of conditions; the CSV beside the report has all


def write_report(table: Table, file: str | os.PathLike[str], *, title: str = "Comparison on held-out conditions") -> None:
    """Write the report of `table`; it needs no other file and no network."""
    metrics = list(headline(table).values())
    text = render(
        "comparison.html",
        title=title,
        **scores(table),
        scatters=[(metric, _scatter(table, metric)) for metric in metrics] if table.models else [],
        costs=table.costs.to_dict("records"),
        conditions=_conditions(table, metrics),
        thirds=_thirds(table, metrics),
        examples=_examples(table, metrics),
        curves=[_curve(table, metric) for metric in metrics] if len(table.learning_curve) else [],
        notes=table.notes,
    )
    Path(file).write_text(text, encoding="utf-8")


def scores(table: Table) -> dict[str, Any]:
    """What every report says of a table of scores: the verdict, all means, and whether intervals hold."""
    metrics = list(headline(table).values())
    summary = table.summary(metrics) if metrics else pd.DataFrame()
    return {
        "overall": overall(table),
        "questions": list(headline(table)),
        "cards": [_card(table, model) for model in table.models],
        "where": _where(table),
        "dots": _dots(table, summary) if len(summary) else "",
        "header": [(metric, arrow(metric)) for metric in table.metrics],
        "rows": _cells(table),
        "metrics": metrics,
        "self_tests": [(name, self_test_text(values)) for name, values in table.self_test.items()],
        "sure": by_support(table.coverage).to_dict("records") if len(table.coverage) else [],
        "sure_level": f"{SHOWN_LEVEL:.0%}",
        "sure_plot": _coverage(table) if len(table.coverage) else "",
    }


def _dots(table: Table, summary: pd.DataFrame) -> Markup:
    reached = summary[summary["method"].isin(table.models)].to_dict("records")
    said = "; ".join(f"{row['method']} on {row['metric']} {row['S']:.2f}" for row in reached) or "no model"
    return figure_svg(dot_plot(table, summary), f"S of every method on every question, 0 the mean baseline and 1 the ceiling: {said}.")


def _scatter(table: Table, metric: str) -> Markup:
    said = ", ".join(f"{model} against {table.best_baseline(metric)}" for model in table.models)
    alt = f"{metric} of every held-out condition: {said}; one dot per condition, with numbers in the table of conditions."
    return figure_svg(scatter(table, metric), alt)


def _curve(table: Table, metric: str) -> Markup:
    return figure_svg(learning_curve(table, metric), f"{metric} against the number of training conditions, for {', '.join(table.models)}.")


def _coverage(table: Table) -> Markup:
    alt = "Share of measured effects inside the interval against its nominal level; the table above has the numbers."
    return figure_svg(coverage_curve(table), alt)


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


_DRAWN: dict[Callable[..., Figure], str] = {
    example_cells: "control, real and predicted cells on two principal components",
    example_effects: "predicted against real effect of the genes that really change most",
    example_genes: "log expression of the genes that really change most, control, real and predicted",
}


def _examples(table: Table, metrics: list[str]) -> list[tuple[str, list[str]]]:
    """Example condition -> its figures."""
    methods = shown_methods(table, metrics[0]) if metrics else []
    of_example = {name: [method for method in methods if method in drawn] for name, drawn in example_names(table).items()}
    return [
        (name, [figure_svg(figure(table, name, shown), f"{name}: {words}; {', '.join(shown)}.") for figure, words in _DRAWN.items()])
        for name, shown in of_example.items()
        if shown
    ]


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
