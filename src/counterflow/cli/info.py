"""`counterflow info`: what is in a fitted model, read from its model.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterflow.cli.parser import VerbParser
from counterflow.data.ledger import STAGES
from counterflow.effects.kinds import describe_trust, named_kind
from counterflow.effects.on_target import OnTarget, in_words
from counterflow.errors import CheckpointError

EXAMPLE = "  counterflow info runs/first"


def parser() -> VerbParser:
    """The options of `info`."""
    verb = VerbParser("info", "RUN", "What is in a fitted model: what it is, what it needs, what it was trained on.", EXAMPLE)
    verb.positional("run", "a run directory, or a saved model")
    return verb


def run(argv: Sequence[str]) -> None:
    """Print it."""
    from counterflow.checkpoint import read_manifest

    options, terminal = parser().parse(argv)
    manifest = read_manifest(options.run)
    facts = describe(manifest)
    terminal.say(f"{options.run}: {facts['backbone']} on {facts['space']}", style="bold")
    terminal.pairs({name: _shown(value, all_of_it=terminal.verbose) for name, value in facts.items()})
    terminal.result(facts)


def describe(manifest: dict[str, Any]) -> dict[str, Any]:
    """The facts of a ``model.json`` that a user asks for."""
    try:
        return _facts(manifest)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"model.json is not what counterflow writes ({type(error).__name__}: {error}): the file was changed"
        ) from error


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    config, setup, training = manifest["config"], manifest["setup"], manifest["training"]
    needs = list(dict.fromkeys([*setup["covariate_keys"], *setup["match_keys"], *filter(None, [setup["library_size_key"]])]))
    return {
        "backbone": config["backbone"],
        "space": config["space"],
        "source": config["source"],
        "coupling": config["coupling"],
        "conditioning": config["conditioning"],
        "anchor": config["anchor"],
        "written by": f"counterflow {manifest['package_version']}",
        "genes": manifest["genes"],
        "control": setup["control"],
        "perturbation column": setup["perturbation_key"],
        "matrix": f"{setup['matrix_state']} in {setup['layer'] or 'X'}",
        "columns needed of new cells": needs,
        "dose and time": [key for key in (setup["dose_key"], setup["time_key"]) if key],
        "trained on cells": training["cells"],
        "of these controls": training["control_cells"],
        "held-out cells": training["held_out_cells"],
        **({"cells left out": training["dropped_cells"]} if "dropped_cells" in training else {}),
        **({"genes not in training": training["unseen_genes"]} if training.get("unseen_genes") else {}),
        "conditions seen": training["conditions"],
        "perturbations known": manifest["vocabulary"]["entities"],
        "trust": describe_trust(manifest["trust"], manifest["config"]["anchor"]),
        "intervals": describe_intervals(manifest["intervals"]),
        "on target": in_words([OnTarget(name, effect, error) for name, effect, error in training["on_target"]]),
        "control cells kept": len(manifest["reference"]["cells"]),
        "learned from cells": learned_from(manifest["ledger"]),
    }


def describe_intervals(intervals: dict[str, Any] | None) -> str:
    """What intervals of predicted effects were learnt on."""
    if not intervals or not intervals["kinds"]:
        return "none: no training condition could be left out"
    learnt = ", ".join(f"{named_kind(kind)} {one['n']}" for kind, one in intervals["kinds"].items())
    return f"learnt on left-out effects: {learnt}"


def learned_from(ledger: dict[str, Any] | None) -> str:
    """Stages of the fit and how many cells each learned from."""
    if ledger is None:
        return "no ledger (an older version saved this model): it cannot be audited for leaks"
    order = [*(stage for stage in STAGES if stage in ledger), *(stage for stage in ledger if stage not in STAGES)]
    cells = {stage: ledger[stage]["cells"] for stage in order}
    return ", ".join(f"{stage} not known" if n is None else f"{stage} {n:,}" for stage, n in cells.items())


def _shown(value: object, *, all_of_it: bool) -> str:
    if not isinstance(value, list):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if not value:
        return "none"
    listed = ", ".join(map(str, value if all_of_it else value[:8]))
    return listed if len(value) <= 8 else f"{len(value):,}: {listed}" + ("" if all_of_it else ", ... (--verbose lists all)")
