"""`counterflow rank`: CounterFlow.rank_perturbations, what to do next to move cells towards a signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from counterflow.cli.effect import write_csv
from counterflow.cli.parser import VerbParser
from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from counterflow.model import CounterFlow

EXAMPLE = """  counterflow rank runs/first --up HBG1,HBG2 --down GATA1 --out plate.csv
  counterflow rank runs/first --like KLF1 --most_parts 1
  counterflow rank runs/first --up up_genes.txt --covariates.cell_type NK"""

_SHOWN = ("well", "condition", "toward", "alignment", "best_part", "best_part_toward", "support", "left_out_r", "left_out_n")


def parser() -> VerbParser:
    """The options of `rank`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "rank", "RUN (--up GENES | --down GENES | --like CONDITION) [--out PLATE.csv] [options]",
        "Which perturbations and pairs that nobody measured would move cells most towards a signature, best first.", EXAMPLE,
    )  # fmt: skip
    verb.positional("run", "a run directory, or a saved model")
    verb.option("up", str | None, None, "genes that shall rise, between commas; or a file with one a line")
    verb.option("down", str | None, None, "genes that shall fall, the same way")
    verb.option("like", str | None, None, "instead: towards the measured effect of this condition")
    verb.option("covariates", dict[str, Any] | None, None, "the cells to move, e.g. --covariates.cell_type NK (default: all contexts)")
    verb.option("out", str | None, None, "a table to write (.csv)")
    verb.option("show", int, 20, "how many rows to print")
    verb.call("", CounterFlow.rank_perturbations, skip=("up", "down", "signature", "covariates"))
    return verb


def run(argv: Sequence[str]) -> None:
    """Rank, print the best, write all."""
    options, terminal = parser().parse(argv)
    if options.out is not None and Path(options.out).suffix != ".csv":
        raise ConfigError(f"--out {options.out!r}: give the name of a file that ends in .csv")
    if options.show < 1:
        raise ConfigError(f"--show {options.show}: print at least one row")
    if (options.like is None) == (options.up is None and options.down is None):
        raise ConfigError("say where the cells shall go: --up and --down with genes, or --like with a measured condition")
    from counterflow.model import CounterFlow

    with terminal.working(f"loading {options.run}"):
        model = CounterFlow.load(options.run)
    with terminal.working("ranking"):
        table = _ranked(model, options)
    if options.out is not None:
        write_csv(table, Path(options.out))
    _report(table, options, terminal)


def _ranked(model: CounterFlow, options: Namespace) -> pd.DataFrame:
    covariates = {key: str(level) for key, level in (options.covariates or {}).items()}
    signature = None if options.like is None else model.measured_effect(options.like, covariates)
    return model.rank_perturbations(
        up=genes_of(options.up), down=genes_of(options.down), signature=signature, covariates=covariates, most_parts=options.most_parts,
        top=options.top, dose=options.dose, time=options.time,
    )  # fmt: skip


def genes_of(given: str | None) -> list[str]:
    """Names between commas, or those of a file with one a line."""
    from counterflow.effects.signatures import pasted_genes

    if given is None:
        return []
    if not Path(given).is_file() and not given.endswith((".txt", ".csv", ".tsv")):
        return pasted_genes(given)
    try:
        return pasted_genes(Path(given).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the genes in {given!r}: {getattr(error, 'strerror', None) or 'it is not text'}") from None


def _report(table: pd.DataFrame, options: Namespace, terminal: Terminal) -> None:
    rows = [[row[name] for name in _SHOWN] for row in table.head(options.show).to_dict("records")]
    terminal.table(list(_SHOWN), rows, title=f"{len(table)} unmeasured conditions, best first")
    terminal.say("toward: mean change of log expression in the wanted direction; left_out_r: how well such predictions did when left out",
                 style="dim")  # fmt: skip
    if options.out is not None:
        terminal.say(f"wrote {len(table):,} rows to {options.out}", style="bold")
    terminal.result({"file": options.out, "rows": table.astype(object).where(table.notna(), None).to_dict("records")})
