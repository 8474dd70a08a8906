"""`counterflow effect`: CounterFlow.predict_effect, the genes that a condition changes and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterflow.cli.generate import add_condition_options, condition_table
from counterflow.cli.parser import VerbParser
from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = """  counterflow effect runs/first --condition KLF1+MAP2K6
  counterflow effect runs/first --condition KLF1 --condition MAP2K6 --out effects.csv
  counterflow effect runs/first --condition KLF1 --interval 0.5 --cells 1000 --covariates.cell_type NK"""


def parser() -> VerbParser:
    """The options of `effect`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "effect", "RUN --condition C [--condition C2 ...] [--out EFFECTS.csv] [options]",
        "By how much genes change under conditions, with intervals, beside what a simple rule says.", EXAMPLE,
    )  # fmt: skip
    add_condition_options(verb)
    verb.option("out", str | None, None, "a table of all genes to write (.csv)")
    verb.option("top", int, 15, "how many genes to print for each condition")
    verb.call("", CounterFlow.predict_effect)
    return verb


def run(argv: Sequence[str]) -> None:
    """Predict, print the largest effects, write all of them."""
    options, terminal = parser().parse(argv)
    if not options.condition:
        raise ConfigError("--condition must be given at least once: what shall be done to the cells?")
    if options.out is not None and Path(options.out).suffix != ".csv":
        raise ConfigError(f"--out {options.out!r}: give the name of a file that ends in .csv")
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: print at least one gene")
    from counterflow.cli.feed import read_or_open
    from counterflow.model import CounterFlow

    with terminal.working(f"loading {options.run}"):
        model = CounterFlow.load(options.run)
    controls = None if options.controls is None else read_or_open(options.controls, model.setup, None, terminal)
    with terminal.working("predicting effects"):
        table = model.predict_effect(
            condition_table(model, options), options.interval, adata=controls, cells=options.cells, n_cells=options.n_cells,
            n_steps=options.n_steps, seed=options.seed, on_unknown=options.on_unknown, missing_genes=options.missing_genes,
        )  # fmt: skip
    if options.out is not None:
        write_csv(table, Path(options.out))
    _report(table, list(model.setup.match_keys), options.top, options.out, terminal)


def write_csv(table: pd.DataFrame, out: Path) -> None:
    """A table, whole or not at all."""
    from counterflow.checkpoint import write_whole

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, table.to_csv(index=False, float_format="%.6g").encode())
    except OSError as error:
        raise ConfigError(f"cannot write {str(out)!r}: {error.strerror or error}") from None


def _report(table: pd.DataFrame, keys: list[str], top: int, out: str | None, terminal: Terminal) -> None:
    shown = []
    for where, rows in table.groupby(["condition", *keys], sort=False, observed=True):
        most = rows.reindex(rows["effect"].abs().sort_values(ascending=False, kind="stable").index)[:top]
        shown += most.to_dict("records")
        columns = [name for name in ("gene", "effect", "lo", "hi", "baseline_effect") if name in most]
        cells = [[*(row[name] for name in columns), _mark(row)] for row in most.to_dict("records")]
        title = f"{' '.join(map(str, where))} ({rows['support'].iloc[0]})"
        terminal.table([*columns, ""], cells, title=title)
        if "lo" in rows:
            sure = int(((rows["lo"] > 0) | (rows["hi"] < 0)).sum())
            terminal.say(
                f"{sure:,} of {len(rows):,} intervals leave out zero, {int(rows['beyond_baseline'].sum()):,} what the simple rule "
                f"'{rows['baseline'].iloc[0]}' says; learnt on {rows['calibrated_on'].iloc[0]} effects that were left out",
                style="dim",
            )
        terminal.say()
    if out is not None:
        terminal.say(f"wrote {len(table):,} rows to {out}", style="bold")
    terminal.result({"file": out, "rows": len(table), "largest": shown})


def _mark(row: dict[Any, Any]) -> str:
    """What is worth knowing of a gene."""
    marks = ["perturbed gene"] if row["target"] else []
    if row.get("beyond_baseline"):
        marks.append("beyond the rule")
    if "lo" in row and not (row["lo"] > 0 or row["hi"] < 0):
        marks.append("could be nothing")
    return ", ".join(marks)
