"""`counterflow evaluate`: a fitted model beside control, mean, additive and the ceiling, on held-out conditions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from counterflow.cli.feed import read_or_open
from counterflow.cli.parser import VerbParser
from counterflow.cli.screen import SPLIT_COLUMN, only_kept
from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError
from counterflow.run import RunDirectory

if TYPE_CHECKING:
    from anndata import AnnData
    from jsonargparse import Namespace

    from counterflow.evaluate.table import Table
    from counterflow.model import CounterFlow

EXAMPLE = """  counterflow evaluate runs/first --out runs/first/scores
  counterflow evaluate runs/first screen.h5ad --subset val --out scores
  counterflow evaluate runs/first --out scores --cell_eval lognorm"""

SHOWN = ("pearson_delta", "mse", "pds_cosine", "energy")  # the columns of the table that verbs print; --out keeps all of them


def parser() -> VerbParser:
    """The options of `evaluate`."""
    verb = VerbParser(
        "evaluate", "RUN [FILE] [--subset test|val] --out DIR", "Score a fitted model on held-out conditions, beside simple rules.", EXAMPLE
    )
    verb.positional("run", "a run directory")
    verb.positional("file", "the screen (default: the file the run was fitted on)", optional=True)
    verb.option("subset", str, "test", "the set to score on: test, or val while choosing")
    verb.option("seed", int, 0, "seed of the halves of real cells that are compared")
    verb.option("out", str | None, None, "where to put the table and the report")
    verb.option(
        "cell_eval", Literal["lognorm", "counts"] | None, None,
        "also write predicted and real cells to OUT/cell_eval, for the scorers cell-eval2 and cell-eval",
    )  # fmt: skip
    return verb


def run(argv: Sequence[str]) -> None:
    """Score and write the table."""
    options, terminal = parser().parse(argv)
    if options.out is None:
        raise ConfigError("--out DIR must be given: where to put the table")
    if options.subset not in ("test", "val"):
        raise ConfigError(f"--subset {options.subset!r}: score on 'test', or on 'val' while choosing")
    folder = RunDirectory(Path(options.run))
    from counterflow.evaluate.report import write_report
    from counterflow.model import CounterFlow

    with terminal.working(f"loading {options.run}"):
        model = CounterFlow.load(options.run)
    adata = only_kept(read_or_open(options.file or _data_of(folder), model.setup, None, terminal), model.setup)
    _restore_split(model, adata, folder)
    with terminal.working("scoring") as watch:
        table = score(model, adata, subset=options.subset, seed=options.seed, metrics=None, progress=watch)
    table.save(options.out)
    write_report(table, Path(options.out) / "report.html", title=f"{row_name(model)} on held-out conditions")
    exported = {}
    if options.cell_eval is not None:
        with terminal.working("exporting"):
            exported = _export(model, adata, options)
    print_scores(table, terminal)
    terminal.say()
    terminal.say(table.verdict(row_name(model)))
    terminal.say(f"wrote {options.out}: report.html to look at, table.csv with every score", style="bold")
    result = {"out": options.out, "verdict": table.verdict(row_name(model)), "summary": records(table)}
    terminal.result(result | ({"cell_eval": exported} if exported else {}))


def _export(model: CounterFlow, adata: AnnData, options: Namespace) -> dict[str, dict[str, str]]:
    """Context -> (real, or the model's name) -> file for other scorers."""
    from counterflow.compare import WithMean
    from counterflow.evaluate.cell_eval import to_cell_eval

    files = to_cell_eval(
        {row_name(model): WithMean(model)}, adata, Path(options.out) / "cell_eval",
        subset=options.subset, input_type=options.cell_eval, seed=options.seed,
    )  # fmt: skip
    return {context: {name: str(path) for name, path in of_name.items()} for context, of_name in files.items()}


def _data_of(folder: RunDirectory) -> str:
    if not folder.facts.is_file():
        raise ConfigError(f"{folder.path} holds no run.json, which says what it was fitted on: give the FILE to score on")
    return folder.data_path()


def _restore_split(model: CounterFlow, adata: AnnData, folder: RunDirectory) -> None:
    """Hold out the same conditions as in the fit, and declare `adata` as the training data were."""
    from counterflow.data.schema import declare
    from counterflow.data.split_file import Split

    if model.setup.split_key is None:
        raise ConfigError("this model was trained on every cell, so nothing is held out to score on: fit again with --split")
    if model.setup.split_key == SPLIT_COLUMN:
        if not folder.split.is_file():
            raise ConfigError(f"{folder.split} is missing: it says what was held out; give the whole run directory")
        adata.obs[SPLIT_COLUMN] = Split.load(folder.split).labels(adata.obs)
    declare(adata, model.setup)


def row_name(model: CounterFlow) -> str:
    """The name of a model in tables."""
    return f"{model.config['backbone']}/{model.config['space']}"


def score(
    model: CounterFlow,
    adata: AnnData,
    *,
    subset: str,
    seed: int,
    metrics: Sequence[str] | None = SHOWN,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """The table of one model; `metrics` None takes all of the headline ones. `progress` is called with a line for each condition."""
    from counterflow.compare import WithMean
    from counterflow.evaluate.evaluate import evaluate

    chosen: dict[str, Any] = {} if metrics is None else {"metrics": metrics}
    return evaluate({row_name(model): WithMean(model)}, adata, subset=subset, seed=seed, progress=progress, **chosen)


def print_scores(table: Table, terminal: Terminal) -> None:
    """Methods x metrics, the means over held-out conditions; S says where between the mean baseline (0) and the ceiling (1)."""
    summary = table.summary()
    shown = [name for name in SHOWN if name in set(summary["metric"])]
    wide = summary.pivot(index="method", columns="metric", values="value").reindex(list(dict.fromkeys(summary["method"])))
    s = summary[summary["metric"] == shown[0]].set_index("method")["S"]
    rows = [[method, *(float(wide.loc[method, name]) for name in shown), float(s[method])] for method in wide.index]
    conditions = int(summary["n"].max())
    terminal.table(["method", *shown, "S"], rows, title=f"mean over {conditions} held-out conditions")
    terminal.say(f"S, on {shown[0]}: 0 = one generic response (mean), 1 = repeating the experiment (ceiling)", style="dim")


def records(table: Table) -> list[dict[str, Any]]:
    """The summary as JSON-able rows; what could not be computed is null."""
    return json.loads(table.summary().to_json(orient="records"))
