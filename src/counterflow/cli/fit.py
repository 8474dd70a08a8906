"""`counterflow fit`: CounterFlow.setup_anndata, CounterFlow, train and save, in a run directory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from counterflow.checkpoint import write_whole
from counterflow.cli import Stopped
from counterflow.cli.feed import read_or_open
from counterflow.cli.parser import VerbParser
from counterflow.cli.screen import add_screen_options, data_path, declare_and_split, only_kept, setup_from
from counterflow.cli.terminal import Terminal
from counterflow.data.labels import texts
from counterflow.devices import is_first, share_of
from counterflow.effects.kinds import describe_trust
from counterflow.effects.on_target import in_words
from counterflow.errors import ConfigError, CounterflowWarning, ProcessError, near
from counterflow.footprint import check_memory
from counterflow.loggers import check_logger
from counterflow.replay import Sample
from counterflow.run import RunDirectory, fingerprint, versions

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.schema import Setup
    from counterflow.data.split_file import Split
    from counterflow.evaluate.table import Table
    from counterflow.model import CounterFlow

EXAMPLE = """  counterflow fit screen.h5ad --setup.perturbation_key gene --setup.control non-targeting \\
      --split unseen_combination --model.backbone mlp --train.max_steps 2000 --out runs/first
  counterflow fit --config configs/norman.yaml --out runs/norman"""

_OF_THE_CALL = ("json", "quiet", "verbose", "debug", "config", "resume", "overwrite", "force_data", "file")  # not options of the fit


def parser() -> VerbParser:
    """The options of `fit`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "fit", "FILE --setup.perturbation_key K --setup.control C [--split NAME|FILE] [options] --out RUN",
        "Fit a model to a perturbation screen and keep it in a run directory.", EXAMPLE,
    )  # fmt: skip
    add_screen_options(verb)
    verb.option("out", str | None, None, "the run directory")
    verb.flag("resume", "go on with an interrupted run in --out")
    verb.flag("force_data", "resume although the data changed; run.json keeps what they were before")
    verb.flag("overwrite", "replace the run in --out")
    verb.call("model", CounterFlow.__init__, skip=("seed",))
    verb.option("model.seed", int | None, None, "seed of everything random in the fit (default: --seed)")
    verb.call("train", CounterFlow.train, skip=("run_dir", "resume_from", "progress", "force_data"))
    verb.option("train.trainer_kwargs", dict[str, Any] | None, None, "further options of lightning.Trainer")
    return verb


def run(argv: Sequence[str]) -> None:
    """Fit, save, and score on what was held out."""
    options, terminal = parser().parse(argv)
    if options.out is None:
        raise ConfigError("--out RUN must be given: the directory for the run")
    folder = RunDirectory(Path(options.out))
    if (options.train.devices, options.train.num_nodes) != (1, 1) and not _checked_trainer(options).is_global_zero:
        train_along(options, folder)
        return
    folder.check(resume=options.resume, overwrite=options.overwrite)
    if options.resume and folder.is_complete:
        terminal.say(f"{folder.path} is already finished: nothing to resume")
        terminal.result({"run": str(folder.path), "finished": True})
        return
    with warnings_kept() as said:
        with folder.alone() if folder.path.is_dir() else nullcontext():
            model, adata, seconds = fit(options, folder, terminal)
        _report(model, adata, folder, seconds, said, options, terminal)


def fit(options: Namespace, folder: RunDirectory, terminal: Terminal) -> tuple[CounterFlow, AnnData, float]:
    """A fitted model, written into `folder`, the cells it was fitted on, and how long that took."""
    model, adata, setup, split, data = _prepare(options, terminal)
    trainer = _checked_trainer(options)
    needed = model.memory_needed()
    check_memory(needed, options.train.memory_limit)
    terminal.say(f"memory: {needed}" + (f", in each of {trainer.world_size} processes" if trainer.world_size > 1 else ""))

    config = resolved(options, data_path(options))
    facts = _facts(options, data, split, adata, setup.split_key) | {"processes": trainer.world_size, "config": config}
    if options.resume:
        facts |= folder.check_same(config, facts, force_data=options.force_data)
        folder.write_facts(facts)
        if options.force_data and split is not None:
            folder.write_split(split.to_json())
    else:
        folder.start(config, facts, None if split is None else split.to_json(), overwrite=options.overwrite)
    if setup.split_key is None:
        terminal.say("no --split: training on every cell, nothing is held out to score on")
    with folder.alone() if not options.resume else nullcontext(), stoppable(folder):
        seconds = _train(model, options, folder, terminal)
        # what is needed beside the model comes first: with the model the run is finished
        folder.write_facts({**facts, "seconds": round(seconds, 1), "steps": model.n_steps_trained})
        if len(model.reference.library):
            write_whole(folder.sample, json.dumps(vars(Sample.draw(model))).encode())
        model.save(folder.model, overwrite=True)
        folder.drop_parts()
    return model, adata, seconds


def train_along(options: Namespace, folder: RunDirectory) -> None:
    """A fit in a process that is not the first of several: it does what training needs, and leaves writing and talking to the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CounterflowWarning)
        model, *_ = _prepare(options, Terminal(quiet=True))
        try:
            with stoppable(folder):
                _train(model, options, folder, Terminal(quiet=True))
        except (ProcessError, Stopped):  # the first says why, and ends with its exit code
            return


def _prepare(options: Namespace, terminal: Terminal) -> tuple[CounterFlow, AnnData, Setup, Split | None, dict[str, Any]]:
    """An untrained model, its cells and their declaration, what is held out, and what identifies the data."""
    options.split_seed = options.seed if options.split_seed is None else options.split_seed
    options.model.seed = options.seed if options.model.seed is None else options.model.seed
    path = data_path(options)
    declared = setup_from(options, path)
    adata = read_or_open(path, declared, options.train.memory_limit, terminal)
    n_given, adata = adata.n_obs, only_kept(adata, declared)
    data = fingerprint_after_checks(adata, declared, path)
    setup, split = declare_and_split(adata, declared, options)
    terminal.detail(f"declared: {setup}")
    with terminal.working("preparing the model"):
        model = _build(adata, options)
    if n_given > adata.n_obs:
        model.trained_on["dropped_cells"] = n_given - adata.n_obs
    return model, adata, setup, split, data


def fingerprint_after_checks(adata: AnnData, setup: Any, path: str) -> dict[str, Any]:
    """What identifies the data; the declaration is verified first, since the fingerprint reads the declared columns."""
    from counterflow.data.schema import declare

    declare(adata, setup)
    return fingerprint(adata, setup, path)


def _build(adata: AnnData, options: Namespace) -> CounterFlow:
    from counterflow.model import CounterFlow

    return CounterFlow(adata, **options.model.as_dict())


def _checked_trainer(options: Namespace) -> Any:
    """A trainer with the options of this fit: it checks them before anything is written, and knows which of how many processes this is."""
    import inspect

    from lightning import Trainer

    from counterflow import training

    check_logger(options.train.logger, options.out)
    given = options.train.trainer_kwargs or {}
    known = [*inspect.signature(Trainer).parameters, *inspect.signature(training.fit).parameters]
    for name in given:
        if name not in known:
            raise ConfigError(f"train.trainer_kwargs: lightning.Trainer has no option {name!r}: {near(name, known)}")
    arguments = {name: options.train[name] for name in ("accelerator", "devices", "precision", "strategy", "num_nodes")}
    arguments |= {name: value for name, value in given.items() if name in inspect.signature(Trainer).parameters}
    with training._quiet_lightning():
        try:
            trainer = Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        except Exception as error:  # of many classes; all of them are about the options
            raise ConfigError(f"train: {' '.join(str(error).split())}") from error
    share_of(trainer)
    return trainer


def resolved(options: Namespace, path: str) -> dict[str, Any]:
    """Every option of the fit, as the config file that repeats it."""
    values = {name: value for name, value in options.as_dict().items() if name not in _OF_THE_CALL}
    return values | {"data": {"path": path}}


def _facts(options: Namespace, data: dict[str, Any], split: Split | None, adata: AnnData, split_key: str | None) -> dict[str, Any]:
    import torch

    split_hash = None
    if split is not None:
        split_hash = hashlib.sha256(split.to_json().encode()).hexdigest()
    elif split_key is not None:
        split_hash = hashlib.sha256("\n".join(texts(adata.obs[split_key])).encode()).hexdigest()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() and options.train.accelerator != "cpu" else None
    return {
        "versions": versions(),
        "device": gpu or "cpu",
        "threads": torch.get_num_threads(),
        "seeds": {"model": options.model.seed, "split": options.split_seed},
        "data": data,
        "split_hash": split_hash,
    }


def _train(model: CounterFlow, options: Namespace, folder: RunDirectory, terminal: Terminal) -> float:
    arguments = options.train.as_dict()
    trainer_options = arguments.pop("trainer_kwargs") or {}
    resume_from = folder.checkpoint if options.resume and folder.checkpoint.exists() else None
    begun = time.perf_counter()
    try:
        model.train(
            **arguments,
            resume_from=resume_from,
            force_data=options.force_data,
            run_dir=folder.path,
            progress=terminal.progress,
            **trainer_options,
        )
    except Exception:
        if is_first():
            folder.drop_if_empty()
        raise
    return time.perf_counter() - begun


@contextmanager
def stoppable(folder: RunDirectory) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Stopped`, which says how to go on; outside the main thread signals are not ours."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        resume = f"; go on with: counterflow fit --config {os.fspath(folder.config)} --resume"
        raise Stopped(signum, resume if folder.checkpoint.exists() else f" before the first step{resume}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """What is warned of goes where it went before, and into the list."""
    said: list[str] = []
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, CounterflowWarning) and str(message) not in said:
            said.append(str(message))
        before(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield said
    finally:
        warnings.showwarning = before


def _report(
    model: CounterFlow, adata: AnnData, folder: RunDirectory, seconds: float, said: list[str], options: Namespace, terminal: Terminal
) -> None:
    from counterflow.cli.evaluate import records
    from counterflow.fit_report import Made, write_fit_report

    config, trained = model.config, model.trained_on
    terminal.say(f"fitted {config['backbone']} on {config['space']} in {seconds:.0f} s", style="bold")
    flow = ", ".join(f"{name} {config[name]}" for name in ("source", "coupling", "conditioning", "anchor"))
    terminal.pairs(
        {
            "cells": f"{trained['cells']:,} to train on ({trained['control_cells']:,} controls), {trained['held_out_cells']:,} held out",
            "conditions": f"{sum(bool(spec.parts) for spec in model.vocabulary.conditions)} seen, {len(model.genes):,} genes",
            "flow": flow,
            "trust": describe_trust({kind: (t.mean, t.spread, t.n) for kind, t in model.trust.items()}, config["anchor"]),
            "on target": in_words(model.on_target()),
            "saved": folder.model,
        }
    )
    table = _scores(model, adata, options, terminal) if trained["held_out_cells"] else None
    made = Made(str(folder.path), seconds, folder.read_facts(), held_out_conditions(adata, model.setup), said)
    write_fit_report(model, made, table, folder.report)
    terminal.say(f"report: {folder.report}")
    evaluation = None if table is None else records(table)
    terminal.result({"run": str(folder.path), "seconds": round(seconds, 1), "trained_on": trained, "evaluation": evaluation})


def held_out_conditions(adata: AnnData, setup: Setup) -> list[str]:
    """What the model has not seen, with the context where only that is new."""
    from counterflow.data.screen import describe, read_contexts, read_specs

    if setup.split_key is None:
        return []
    held = adata.obs[texts(adata.obs[setup.split_key]).to_numpy() == "test"]
    specs, (context, contexts) = read_specs(held, setup), read_contexts(held, setup)
    pairs = dict.fromkeys((spec, int(code)) for spec, code in zip(specs, context, strict=True) if spec.parts)
    return sorted(" ".join([describe(spec, setup), *contexts[code]]) for spec, code in pairs)


def _scores(model: CounterFlow, adata: AnnData, options: Namespace, terminal: Terminal) -> Table:
    """Print how well the held-out conditions are predicted, beside the simple rules."""
    from counterflow.cli.evaluate import print_scores, score

    with terminal.working("scoring on held-out conditions") as watch:
        table = score(model, adata, subset="test", seed=options.seed, progress=watch)
    terminal.say()
    print_scores(table, terminal)
    return table
