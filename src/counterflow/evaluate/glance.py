"""A table in a notebook: means over conditions, S, and the verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterflow.evaluate.scoring import DIAGNOSTICS
from counterflow.shown import card, listed, paragraph
from counterflow.shown import table as html_table

if TYPE_CHECKING:
    from counterflow.evaluate.table import Table

MOST_METRICS, MOST_NOTES = 6, 5


def glance(table: Table) -> str:
    """The table as HTML: methods x metrics; models are bold."""
    summary = table.summary()
    if summary.empty:
        return card("no scores", listed("to know", table.notes[:MOST_NOTES]))
    metrics = [name for name in dict.fromkeys(summary["metric"]) if name not in DIAGNOSTICS][:MOST_METRICS]
    of = summary.set_index(["method", "metric"])
    methods = list(dict.fromkeys(summary["method"]))
    rows = [[method, *(value(of.loc[(method, name)]) if (method, name) in of.index else "n/a" for name in metrics)] for method in methods]
    strong = [number for number, method in enumerate(methods) if method in table.models]
    return card(
        f"mean over {int(summary['n'].max()):,} held-out conditions",
        html_table(["method", *metrics], rows, strong),
        paragraph("In brackets S: 0 is one generic response (mean), 1 is repeating the experiment (split_half)."),
        *(paragraph(table.verdict(name)) for name in table.models[:MOST_NOTES]),
        listed("to know", table.notes[:MOST_NOTES]),
    )


def value(row: object) -> str:
    """The mean, with S in brackets."""
    mean, s = float(row["value"]), float(row["S"])  # type: ignore[index]
    return "n/a" if mean != mean else f"{mean:.3f}".replace("-0.000", "0.000") + (f" ({s:.2f})" if s == s else "")
