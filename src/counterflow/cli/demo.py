"""`counterflow demo`: a simulated screen, a model, the simple rules, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from counterflow.cli.parser import VerbParser

EXAMPLE = "  counterflow demo --out counterflow-demo"


def parser() -> VerbParser:
    """The options of `demo`."""
    verb = VerbParser("demo", "[--out DIR]", "Fit a simulated screen, and compare the model and the simple rules with the truth.", EXAMPLE)
    verb.option("out", str, "counterflow-demo", "where to put the cells and the plot")
    return verb


def run(argv: Sequence[str]) -> None:
    """Call `counterflow.demo.run`."""
    options, terminal = parser().parse(argv)
    from counterflow import demo

    terminal.result(demo.run(Path(options.out), not (terminal.quiet or terminal.as_json)))
