"""`counterflow replay`: does a run come out again, and if not, what is different here."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from counterflow.cli import Stopped
from counterflow.cli.parser import VerbParser
from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError
from counterflow.replay import TOLERANCE, Outcome, Sample, compare_models, compare_samples, what_changed
from counterflow.run import RunDirectory, versions

EXAMPLE = """  counterflow replay runs/first
  counterflow replay runs/first --data /elsewhere/screen.h5ad
  counterflow replay runs/first --sample"""


def parser() -> VerbParser:
    """The options of `replay`."""
    verb = VerbParser(
        "replay", "RUN [--data FILE | --sample] [options]",
        "Fit a run again, in a temporary directory, and say whether the result is the same: identical (to the bit), within tolerance, or\n"
        "different, and what is not as it was. Exit code 0 for the first two, 1 for different. RUN is not changed.", EXAMPLE,
    )  # fmt: skip
    verb.positional("run", "a finished run directory")
    verb.option("data", str | None, None, "where the screen is now (default: where it was)")
    verb.flag("sample", "do not fit: let the saved model draw the cells again that it drew when it was fitted (seconds)")
    verb.option("tolerance", float, TOLERANCE, "largest difference of a gene's mean log expression under a condition that is the same")
    verb.option("trust_packages", str, None, "a package whose network the run may import; may be given several times", repeat=True)
    return verb


def run(argv: Sequence[str]) -> None:
    """Replay and say what came out."""
    options, terminal = parser().parse(argv)
    folder = RunDirectory(Path(options.run))
    if not options.tolerance >= 0:
        raise ConfigError(f"--tolerance {options.tolerance:g}: must not be negative")
    if options.sample and options.data is not None:
        raise ConfigError("--sample reads no data: leave out --data, or --sample to fit again")
    facts = folder.read_facts()
    if not folder.is_complete:
        raise ConfigError(f"the run in {options.run!r} is not finished: counterflow fit --config {folder.config} --resume")
    outcome = _draw_again(folder, facts, options) if options.sample else _fit_again(folder, facts, options, terminal)
    _report(outcome, options, terminal)
    if outcome.verdict == "different":
        raise SystemExit(1)


def _load(folder: RunDirectory, options: Namespace) -> Any:
    from counterflow.model import CounterFlow

    return CounterFlow.load(folder.model, trust_packages=options.trust_packages or ())


def _draw_again(folder: RunDirectory, facts: dict[str, Any], options: Namespace) -> Outcome:
    import torch

    if not folder.sample.is_file():
        raise ConfigError(
            f"{options.run!r} holds no sample.json (the model keeps no controls, or is older): leave out --sample to fit again"
        )
    try:
        content = json.loads(folder.sample.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    before, model = Sample.from_dict(content), _load(folder, options)
    here = {"versions": versions(), "device": facts.get("device"), "threads": torch.get_num_threads()}  # cells are drawn on the processor
    return compare_samples(before, Sample.draw(model), what_changed(facts, here), options.tolerance)


def _fit_again(folder: RunDirectory, facts: dict[str, Any], options: Namespace, terminal: Terminal) -> Outcome:
    from counterflow.cli import fit

    before = _load(folder, options)
    with tempfile.TemporaryDirectory(prefix="counterflow-replay-") as scratch:
        again = RunDirectory(Path(scratch) / "run")
        try:
            with terminal.working("fitting again"):
                now, adata, _ = fit.fit(_same_options(folder, facts, options, again), again, Terminal(quiet=True))
        except Stopped as stop:
            raise Stopped(stop.signum, f": {folder.path} is as it was") from None
        changed = what_changed(facts, again.read_facts())
        before.attach(adata)
        return compare_models(before, now, changed, options.tolerance)


def _same_options(folder: RunDirectory, facts: dict[str, Any], options: Namespace, again: RunDirectory) -> Namespace:
    """The options of the run; the same conditions are held out, and a fit that was measured in seconds takes the steps it took."""
    from counterflow.cli import fit

    folder.read_config()
    words = [] if options.data is None else [options.data]
    same, _ = fit.parser().parse([*words, "--config", str(folder.config), "--out", str(again.path)])
    backbone = str(same.model.backbone)
    package = backbone.split(":")[0].split(".")[0]
    if ":" in backbone and package not in (options.trust_packages or ()):
        raise ConfigError(f"this run needs the code {backbone!r}: if you trust it, --trust_packages {package}")
    if folder.split.is_file():
        same.split, same.held_out = str(folder.split), None
    same.train.devices, same.train.num_nodes, same.train.strategy = 1, 1, "auto"  # the same result, but for the last digits
    same.train.logger = "csv"  # nobody looks at the curves of a replay
    if same.train.max_seconds is not None:
        if not isinstance(facts.get("steps"), int):
            raise ConfigError(f"{folder.facts} does not say how many steps the run took in its {same.train.max_seconds:g} s")
        same.train.max_seconds, same.train.max_epochs, same.train.max_steps = None, None, facts["steps"]
    return same


def _report(outcome: Outcome, options: Namespace, terminal: Terminal) -> None:
    finite = math.isfinite(outcome.distance)
    far = f"largest difference of a gene's mean log expression {outcome.distance:.2g}" if finite else "conditions or genes are not the same"
    said = "every bit is the same" if outcome.verdict == "identical" else f"{far} (tolerance {options.tolerance:g})"
    terminal.say(f"{options.run}: {outcome.verdict}", style="bold")
    terminal.say(f"  {said}")
    for reason in outcome.reasons:
        terminal.say(f"  not as it was: {reason}")
    if outcome.verdict != "identical" and not outcome.reasons:
        terminal.say("  nothing that was written down is different: the processor or driver is another, or the saved model was changed")
    reasons = {"reasons": list(outcome.reasons), "distance": outcome.distance if finite else None}
    terminal.result({"run": options.run, "outcome": outcome.verdict, **reasons, "tolerance": options.tolerance})
