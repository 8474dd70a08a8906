"""The report of one fit: is it any good first, then what it learnt from, how far it trusts itself, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterflow.checkpoint import write_whole
from counterflow.data.screen import describe
from counterflow.effects.on_target import OnTarget, in_words
from counterflow.evaluate.report import scores
from counterflow.page.drawing import BLUE, ORANGE, Line, intervals, lines
from counterflow.page.render import render

if TYPE_CHECKING:
    from markupsafe import Markup

    from counterflow.evaluate.table import Table
    from counterflow.model import CounterFlow

MOST_NAMES = 60  # conditions that are listed
MOST_TARGETS = 40  # perturbed genes that are drawn
_NEVER_SCORED = "No condition was held out, so nothing here says how good this model is on conditions that it has not seen."
_NOT_SCORED = "The held-out conditions were not scored: counterflow evaluate does that."
_KINDS = {
    "seen": "measured conditions",
    "combination": "new combinations of parts measured alone",
    "part": "combinations with a part never measured alone",
    "level": "another dose or time",
    "feature": "perturbations known by their features",
    "context": "another kind of cells",
    "unknown": "perturbations nothing is known of",
}


@dataclass(frozen=True)
class Made:
    """How a fit came about."""

    run: str  # the run directory
    seconds: float
    facts: Mapping[str, Any]  # of run.json
    held_out: Sequence[str]  # conditions
    warnings: Sequence[str]


def write_fit_report(model: CounterFlow, made: Made, table: Table | None, file: Path) -> None:
    """Write the report of a fitted `model`; `table`: scores on held-out conditions, if there are any."""
    write_whole(file, page(model, made, table).encode())


def page(model: CounterFlow, made: Made, table: Table | None) -> str:
    """The report as HTML: one file, which needs no other and no network."""
    on_target = model.on_target()
    seen = sorted(spec for spec in model.vocabulary.conditions if spec.parts)
    facts, kinds = made.facts, {} if model.intervals is None else model.intervals.kinds
    return render(
        "fit.html",
        title=f"Fit of {Path(str(facts['data'].get('path', 'a screen'))).name}",
        scored=table is not None,
        unscored=_NOT_SCORED if made.held_out else _NEVER_SCORED,
        **(scores(table) if table is not None else {}),
        warnings=made.warnings,
        summary=_summary(model, made),
        seen=[describe(spec, model.setup) for spec in seen[:MOST_NAMES]],
        n_seen=len(seen),
        held_out=made.held_out[:MOST_NAMES],
        n_held_out=len(made.held_out),
        curve=_learning_curve(model.history),
        anchored=model.rule is not None,
        trust=[(_KINDS.get(kind, kind), t.mean, t.spread, t.n) for kind, t in model.trust.items()],
        intervals=[(_KINDS.get(kind, kind), one.n, one.baseline) for kind, one in kinds.items()],
        on_target=in_words(on_target),
        targets=_targets(on_target) if on_target else "",
        n_targets=min(len(on_target), MOST_TARGETS),
        n_on_target=len(on_target),
        command=_command(made),
        versions=facts.get("versions", {}),
        made=[("device", facts.get("device")), ("threads", facts.get("threads")), ("seeds", _pairs(facts.get("seeds", {}))),
              ("data", f"{facts['data'].get('path')}, sha256 {str(facts['data'].get('sha256'))[:16]}"), ("seconds", f"{made.seconds:.0f}")],
    )  # fmt: skip


def _summary(model: CounterFlow, made: Made) -> list[tuple[str, str]]:
    config, trained, setup = model.config, model.trained_on, model.setup
    levels = model.rule.genes.measured.levels if model.rule is not None else ()
    contexts = [" ".join(level) for level in levels if level]
    said = [
        ("model", f"{config['backbone']} on {config['space']}, source {config['source']}, conditioning {config['conditioning']}"),
        ("cells", f"{trained['cells']:,} to train on, {trained['control_cells']:,} of them controls ({setup.control!r})"),
        ("held out", f"{trained['held_out_cells']:,} cells of {len(made.held_out):,} condition{'s' * (len(made.held_out) != 1)}"),
        ("genes", f"{len(model.genes):,}"),
        ("steps", f"{model.n_steps_trained:,}"),
    ]
    if contexts:
        said.append((", ".join(setup.match_keys), ", ".join(contexts[:MOST_NAMES])))
    if trained.get("dropped_cells"):
        said.append(("left out", f"{trained['dropped_cells']:,} cells without a declared value or a count"))
    return said


def _learning_curve(history: Sequence[Mapping[str, float]]) -> Markup | str:
    """Loss on training cells and, where they were watched, on validation conditions."""
    curves = []
    for column, name, colour, dashed in (("train_loss", "training", BLUE, False), ("val_loss", "validation", ORANGE, True)):
        points = [(row["step"], row[column]) for row in history if np.isfinite(row.get(column, np.nan))]
        if len(points) > 1:
            steps, loss = np.array(points, dtype=float).T
            curves.append(Line(name, steps, loss, colour, dashed))
    if not curves:
        return ""
    ends = "; ".join(f"{one.name} from {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in curves)
    return lines(curves, alt=f"Loss against optimiser steps: {ends}.", x_label="optimiser step", y_label="loss")


def _targets(found: Sequence[OnTarget]) -> Markup:
    """Measured effects of perturbations on their own gene, those that move least first: these are the ones to look at."""
    shown = sorted(found, key=lambda one: abs(one.effect) / max(one.error, 1e-9))[:MOST_TARGETS]
    effect, error = (np.array([getattr(one, name) for one in shown]) for name in ("effect", "error"))
    return intervals(
        [one.perturbation for one in shown], effect, effect - 2 * error, effect + 2 * error, np.full(len(shown), np.nan),
        alt=f"Measured effect of each perturbation on its own gene: {in_words(found)}.", x_label="effect on its own gene, log expression",
    )  # fmt: skip


def _command(made: Made) -> str:
    config, again = str(Path(made.run) / "config.yaml"), f"{made.run}_again"
    return f"{shlex.join(['counterflow', 'replay', made.run])}\n{shlex.join(['counterflow', 'fit', '--config', config, '--out', again])}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
