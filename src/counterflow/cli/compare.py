"""`counterflow compare`: several backbones and spaces on the same split, beside the simple rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from counterflow.cli.feed import read_or_open
from counterflow.cli.parser import VerbParser
from counterflow.cli.screen import add_screen_options, data_path, declare_and_split, only_kept, setup_from
from counterflow.data.schema import declare
from counterflow.errors import ConfigError

EXAMPLE = """  counterflow compare screen.h5ad --setup.perturbation_key gene --setup.control non-targeting \\
      --models mlp/pca,dit/raw --budget.seconds 60 --seeds 3 --out comparison"""


def parser() -> VerbParser:
    """The options of `compare`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "compare", "FILE --setup.perturbation_key K --setup.control C --models mlp/pca,dit/raw,... [options] --out DIR",
        "Fit several models on the same split at the same budget and rank them beside simple rules.", EXAMPLE,
    )  # fmt: skip
    add_screen_options(verb)
    verb.option("models", str | list[str], "mlp/pca", "backbone/space, or recipes (configs/recipes/*.yaml), separated by commas")
    verb.option("seeds", int, 1, "fits of each model, with seeds 0, 1, ...")
    verb.option("budget.steps", int | None, None, "training steps of each fit")
    verb.option("budget.seconds", float | None, None, "processor seconds of each fit")
    verb.option("budget.parameters", int | None, None, "make every backbone about this large")
    verb.option("learning_curve", list[float], [], "shares of the training conditions to fit on again, e.g. [0.25,0.5]")
    verb.option("out", str | None, None, "where to put the table")
    verb.call("model", CounterFlow.__init__, skip=("backbone", "space", "seed"))
    verb.call("train", CounterFlow.train, skip=("run_dir", "resume_from", "progress", "max_steps", "max_seconds", "max_epochs"))
    return verb


def run(argv: Sequence[str]) -> None:
    """Compare and write the table."""
    options, terminal = parser().parse(argv)
    if options.out is None:
        raise ConfigError("--out DIR must be given: where to put the table")
    if options.budget.steps is not None and options.budget.seconds is not None:
        raise ConfigError("--budget.steps and --budget.seconds exclude each other: give one of them")
    if not all(0 < share < 1 for share in options.learning_curve):
        raise ConfigError(f"--learning_curve {options.learning_curve}: shares of the training conditions, between 0 and 1")
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: at least one fit of each model")
    options.split_seed = options.seed if options.split_seed is None else options.split_seed
    path = data_path(options)
    declared = setup_from(options, path)
    adata = only_kept(read_or_open(path, declared, options.train.memory_limit, terminal), declared)
    declare(adata, declared)
    if options.split is None and declared.split_key is None:
        from counterflow.diagnosis.proposal import suggest_split

        options.split = suggest_split(adata.obs, declared)
        terminal.say(f"no --split: taking {options.split}, which this screen can carry")
    _, split = declare_and_split(adata, declared, options)

    from counterflow.cli.evaluate import print_scores, records
    from counterflow.compare import compare

    table = compare(
        adata, model_names(options.models), split=split, seeds=options.seeds, budget_steps=options.budget.steps,
        budget_seconds=options.budget.seconds, budget_parameters=options.budget.parameters,
        learning_curve=options.learning_curve, out=options.out, model_options=_given(parser(), options, "model"),
        train_options=_given(parser(), options, "train"), progress=not (terminal.quiet or terminal.as_json),
    )  # fmt: skip
    print_scores(table, terminal)
    for name in table.models:
        terminal.say(f"{name}: {table.verdict(name)}")
    terminal.say(f"wrote {options.out}", style="bold")
    terminal.result({"out": options.out, "summary": records(table)})


def model_names(models: str | list[str]) -> list[str]:
    """The names of ``--models``."""
    words = models.split(",") if isinstance(models, str) else models
    names = [word.strip() for word in words if word.strip()]
    if not names:
        raise ConfigError("--models is empty: name some, e.g. mlp/pca,dit/raw")
    return names


def _given(verb: VerbParser, options: Namespace, section: str) -> dict[str, Any]:
    """Options of a section that differ from their defaults: only these are handed on."""
    defaults = verb.parser.get_defaults()[section].as_dict()
    return {name: value for name, value in options[section].as_dict().items() if value != defaults[name]}
