"""Train several models under one budget and put them in one table with every applicable simple baseline and the ceiling.

Everything finished is kept in small files under `out`, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.split_file import Keys, Split, data_hash
from counterflow.data.splits import SPLITS, build_split
from counterflow.errors import ConfigError, CounterflowError, near
from counterflow.evaluate.audit import audit_split
from counterflow.evaluate.baselines import applicable
from counterflow.evaluate.evaluate import HEADLINE, evaluate
from counterflow.evaluate.report import write_report
from counterflow.evaluate.table import Table, concat
from counterflow.model import CounterFlow

if TYPE_CHECKING:
    from anndata import AnnData

SPLIT_COLUMN = "counterflow_split"
DEFAULT_STEPS = 2000
PROBE_STEPS = (10, 40)  # two short trainings tell what a step costs
BASELINES_FILE = "baselines"


@dataclass(frozen=True)
class Budget:
    """What every model may spend: optimiser steps, or processor seconds of training."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.seconds is not None:
            raise ConfigError("give budget_steps or budget_seconds, not both: models are compared under one budget")
        if self.steps is None and self.seconds is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        if (self.steps or self.seconds or 0) <= 0:
            raise ConfigError(f"the budget must be positive; got {self}")

    def __str__(self) -> str:
        return f"{self.steps} optimiser steps" if self.steps is not None else f"{self.seconds:g} processor seconds of training"


@dataclass(frozen=True)
class Task:
    """One model and seed to train."""

    model: str
    seed: int

    @property
    def file(self) -> str:
        """Stem of its row file."""
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in self.model) + f"-seed{self.seed}"


def compare(
    adata: AnnData,
    models: Sequence[str],
    *,
    split: str | Split | os.PathLike[str] | None = None,
    seeds: int = 1,
    budget_steps: int | None = None,
    budget_seconds: float | None = None,
    out: str | os.PathLike[str],
    model_options: Mapping[str, Any] | None = None,
    train_options: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = HEADLINE,
    n_halvings: int = 5,
    dataset: str = "",
    resume: bool = True,
    progress: bool = True,
) -> Table:
    """Train `models` on one split under one budget; score them, all applicable baselines and the ceiling.

    Parameters
    ----------
    adata
        Declared with `CounterFlow.setup_anndata`. It is not changed.
    models
        ``backbone/space``, such as ``mlp/pca`` or ``mylab.retnet:RetNet/raw``.
    split
        A name of `counterflow.data.splits.SPLITS`, a split file, or a `Split`; None takes the declared ``split_key``.
    seeds
        Trainings of every model; the table shows their mean.
    budget_steps, budget_seconds
        Optimiser steps, or processor seconds, that every model is trained for. Default: 2,000 steps.
    out
        Directory of the results: ``table.csv`` (long), ``summary.md``, ``summary.json``, ``split.json``, ``report.html``, and ``rows/``
        with what is finished.
    model_options, train_options
        Further arguments of `CounterFlow` and `CounterFlow.train`, the same for all models.
    metrics, n_halvings
        As in `evaluate`.
    dataset
        A name for the table.
    resume
        Go on where an earlier call with the same arguments was stopped. ``False`` does everything anew.
    progress
        Say on standard error what is done, and about how long the rest takes.

    Raises
    ------
    ConfigError
        For an unknown split or model name, or if `out` holds another comparison.
    DataError
        If a cell sits in two sets of the split, or the split is not what its name promises.

    Notes
    -----
    A perturbation that a model knows nothing about gets the mean effect (``on_unknown="mean"``), as the baselines give it. A model that
    cannot be trained is named in the notes of the table; the others go on.
    """
    budget = Budget(budget_steps, budget_seconds)
    model_options, train_options = dict(model_options or {}), dict(train_options or {})
    for name in models:
        _backbone_and_space(name)
    held_out, used = _with_split(adata, split)
    audit_split(held_out, used)
    path = Path(out)
    (path / "rows").mkdir(parents=True, exist_ok=True)
    plan = {
        "data": data_hash(held_out.obs, _keys(setup_of(held_out))),
        "shape": list(held_out.shape),
        "split": hashlib.sha256("\n".join(held_out.obs[SPLIT_COLUMN].astype(str)).encode()).hexdigest(),
        "setup": setup_of(held_out).to_dict(),
        "budget": asdict(budget),
        "model_options": repr(sorted(model_options.items())),
        "train_options": repr(sorted(train_options.items())),
        "metrics": list(metrics),
        "n_halvings": n_halvings,
    }
    _check_plan(path, plan, resume)
    if used is not None:
        used.save(path / "split.json")
    named = {"dataset": dataset, "split": used.name if used is not None else setup_of(held_out).split_key or ""}
    how: dict[str, Any] = {"metrics": metrics, "n_halvings": n_halvings, **named}
    watch = _Watch(progress)

    if not _finished(path, BASELINES_FILE):
        watch.say("scoring the simple baselines")
        _keep(path, BASELINES_FILE, evaluate({}, held_out, baselines=applicable(held_out), progress=watch.detail, **how))
    tasks = [Task(model, seed) for seed in range(seeds) for model in models]
    left = [task for task in tasks if not _finished(path, task.file)]
    failed = []
    for i, task in enumerate(left):
        watch.start(f"{task.model} seed {task.seed}", i, len(left))
        try:
            _keep(path, task.file, _train_and_score(held_out, task, budget, model_options, train_options, how))
        except CounterflowError as error:
            failed.append(f"{task.model} (seed {task.seed}) failed: {str(error).splitlines()[0]}")
            watch.say(failed[-1])
    table = concat(Table.load(path / "rows" / name) for name in [*(t.file for t in tasks), BASELINES_FILE] if _finished(path, name))
    notes = (f"Budget of every model: {budget}. Unknown perturbations get the mean effect.", *table.notes, *failed)
    table = replace(table, notes=notes)
    table.save(path)
    write_report(table, path / "report.html", title=f"Comparison: {dataset or 'held-out conditions'}")
    watch.say(f"done: {path / 'summary.md'}")
    return table


class WithMean:
    """A model that answers for perturbations it knows nothing about with the mean effect."""

    def __init__(self, model: CounterFlow) -> None:
        self.model = model

    def predict(self, adata: AnnData, conditions: pd.DataFrame) -> AnnData:
        """As `CounterFlow.predict`."""
        return self.model.predict(adata, conditions, on_unknown="mean")

    def audit(self, adata: AnnData, subset: str = "test") -> str:
        """As `CounterFlow.audit`."""
        return self.model.audit(adata, subset, on_unknown="mean")


def _train_and_score(
    adata: AnnData, task: Task, budget: Budget, model_options: dict[str, Any], train_options: dict[str, Any], how: dict[str, Any]
) -> Table:
    def build() -> CounterFlow:
        backbone, space = _backbone_and_space(task.model)
        return CounterFlow(adata, **{"backbone": backbone, "space": space, "seed": task.seed, **model_options})

    options = {"progress": False, **train_options}
    steps = budget.steps if budget.steps is not None else _steps_within(build, float(budget.seconds or 0), options)
    model = build()
    started, wall = time.process_time(), time.monotonic()
    model.train(max_steps=steps, **options)
    trained, trained_wall = time.process_time() - started, time.monotonic() - wall
    started = time.process_time()
    table = evaluate({task.model: WithMean(model)}, adata, baselines=(), **how)
    cost = {
        "method": task.model,
        "seed": task.seed,
        "steps": steps,
        "train_cpu_s": round(trained, 1),
        "train_wall_s": round(trained_wall, 1),
        "score_cpu_s": round(time.process_time() - started, 1),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "function_evaluations": function_evaluations(model),
    }
    rows = table.rows[table.rows["method"] == task.model].assign(seed=task.seed)
    return Table(rows, table.self_test, pd.DataFrame([cost]), table.notes)


def function_evaluations(model: CounterFlow) -> int:
    """Calls of the backbone that one predicted cell takes."""
    calls = []
    handle = model.module.backbone.register_forward_hook(lambda *_: calls.append(1))
    known = sorted(spec for spec in model.vocabulary.conditions if spec.parts)[0]
    table = pd.DataFrame({model.setup.perturbation_key: [model.setup.delimiter.join(known.parts)]})
    if model.setup.dose_key is not None:
        table[model.setup.dose_key] = model.setup.delimiter.join(f"{dose:g}" for dose in known.doses)
    if model.setup.time_key is not None:
        table[model.setup.time_key] = known.time
    try:
        model.predict(conditions=table, n_cells=1)
    finally:
        handle.remove()
    return len(calls)


def _steps_within(build: Any, seconds: float, options: dict[str, Any]) -> int:
    """Optimiser steps that take this many processor seconds, from what two short trainings took."""
    took = []
    for steps in PROBE_STEPS:
        model = build()
        started = time.process_time()
        model.train(max_steps=steps, **options)
        took.append(time.process_time() - started)
    per_step = max((took[1] - took[0]) / (PROBE_STEPS[1] - PROBE_STEPS[0]), 1e-4)
    fixed = max(took[0] - PROBE_STEPS[0] * per_step, 0.0)
    return max(1, int((seconds - fixed) / per_step))


def _backbone_and_space(name: str) -> tuple[str, str]:
    backbone, slash, space = name.rpartition("/")
    if not (backbone and slash and space):
        raise ConfigError(f"a model is written backbone/space, for example mlp/pca; got {name!r}")
    return backbone, space


def _keys(setup: Setup) -> Keys:
    return Keys(setup.perturbation_key, setup.control, setup.delimiter, setup.match_keys, setup.dose_key, setup.time_key)


def _with_split(adata: AnnData, split: str | Split | os.PathLike[str] | None) -> tuple[AnnData, Split | None]:
    """A copy of `adata` with the split in one column, and the split."""
    setup = setup_of(adata)
    held_out = adata.copy()
    if split is None:
        if setup.split_key is None:
            raise ConfigError(f"nothing is held out: name a split ({', '.join(SPLITS)}), give a split file, or declare split_key")
        held_out.obs[SPLIT_COLUMN] = held_out.obs[setup.split_key].astype(str)
        used = None
    else:
        used = split if isinstance(split, Split) else _named_split(split, held_out.obs, _keys(setup))
        held_out.obs[SPLIT_COLUMN] = used.labels(held_out.obs)
    declare(held_out, replace(setup, split_key=SPLIT_COLUMN))
    return held_out, used


def _named_split(split: str | os.PathLike[str], obs: pd.DataFrame, keys: Keys) -> Split:
    if os.fspath(split) in SPLITS:
        return build_split(os.fspath(split), obs, keys)
    if Path(split).is_file():
        found = Split.load(os.fspath(split))
        found.verify(obs)
        return found
    raise ConfigError(f"{os.fspath(split)!r} is neither a split nor a split file: {near(os.fspath(split), SPLITS)}")


def _check_plan(path: Path, plan: dict[str, Any], resume: bool) -> None:
    file = path / "compare.json"
    if file.exists() and not resume:
        for old in (path / "rows").glob("*/done"):
            old.unlink()
    elif file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key in plan if stored.get(key) != plan[key]]
        if other:
            raise ConfigError(f"{str(path)!r} holds another comparison ({', '.join(other)} differ): give another out, or resume=False")
    _write(file, json.dumps(plan, indent=1) + "\n")


def _finished(path: Path, name: str) -> bool:
    return (path / "rows" / name / "done").exists()


def _keep(path: Path, name: str, table: Table) -> None:
    """Save a table; the marker comes last, so that what was interrupted does not count."""
    table.save(path / "rows" / name)
    _write(path / "rows" / name / "done", "")


def _write(file: Path, text: str) -> None:
    scratch = file.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)


class _Watch:
    """Lines on standard error: what is done, and an estimate of the time left from what is done."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.first = shown, time.monotonic()

    def say(self, text: str) -> None:
        if self.shown:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.shown and sys.stderr.isatty():
            print(f"\r\033[K  {text}", end="\r", file=sys.stderr, flush=True)

    def start(self, text: str, done: int, of: int) -> None:
        if done == 0:
            self.first = time.monotonic()
        each = (time.monotonic() - self.first) / done if done else 0.0
        left = f", about {_duration(each * (of - done))} left" if done else ""
        self.say(f"{done + 1} of {of}: {text}{left}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
