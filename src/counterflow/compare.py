"""Train several models under one budget and put them in one table with every applicable simple baseline and the ceiling.

Everything finished is kept in small files under `out`, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterflow.budget import Budget, width_for
from counterflow.contender import Contender
from counterflow.data.file_rows import is_on_disk, some_cells
from counterflow.data.genes import CHOICE, choose_genes
from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.split_file import SEPARATOR, Keys, Split, condition_table, data_hash
from counterflow.data.splits import SPLITS, build_split
from counterflow.effect_table import PredictedEffect
from counterflow.errors import ConfigError, CounterflowError, near
from counterflow.evaluate.audit import audit_split
from counterflow.evaluate.baselines import applicable
from counterflow.evaluate.evaluate import HEADLINE, evaluate
from counterflow.evaluate.examples import Examples
from counterflow.evaluate.report import write_report
from counterflow.evaluate.table import Table, concat
from counterflow.memory import forget_peak_memory, peak_memory
from counterflow.model import CounterFlow
from counterflow.prediction import BLOCK

if TYPE_CHECKING:
    from anndata import AnnData

SPLIT_COLUMN = "counterflow_split"
BASELINES_FILE = "baselines"


@dataclass(frozen=True)
class Task:
    """One model and seed to train, on a share of the training conditions."""

    model: str
    seed: int
    share: float = 1.0

    def __str__(self) -> str:
        return f"{self.model} seed {self.seed}" + (f" on {self.share:.0%} of the training conditions" if self.share < 1 else "")

    @property
    def file(self) -> str:
        """Stem of its row file."""
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.model)
        return f"{name}-seed{self.seed}" + (f"-share{self.share:g}" if self.share < 1 else "")

    def part_of(self, adata: AnnData) -> AnnData:
        """`adata` with its share of the training conditions; the cells of the others are not there, not even to be watched."""
        if self.share == 1:
            return adata
        names, chosen = _training_conditions(adata)
        keep = set(np.random.default_rng(self.seed).permutation(chosen)[: _n_conditions(self.share, len(chosen))])
        aside = names.isin(set(chosen) - keep).to_numpy() & (adata.obs[SPLIT_COLUMN] == "train").to_numpy()
        return some_cells(adata, ~aside)


def _n_conditions(share: float, n: int) -> int:
    """How many of `n` training conditions a share is: at least two, if there are."""
    return min(n, max(2, round(share * n)))


def _training_conditions(adata: AnnData) -> tuple[pd.Series, list[str]]:
    """What was done to each cell and in which context, as one name (empty for controls); and the names met in training."""
    setup = setup_of(adata)
    table = condition_table(adata.obs, _keys(setup))
    columns = [name for name in ("perturbation", "dose", "time", "context") if name in table]
    names = table[columns].astype(str).agg(SEPARATOR.join, axis=1).where(~table["is_control"], "").set_axis(adata.obs_names)
    return names, sorted(set(names[(adata.obs[SPLIT_COLUMN] == "train").to_numpy()]) - {""})


def _curve(whole: Table, parts: Mapping[Task, Table], adata: AnnData) -> pd.DataFrame:
    """Means over the held-out conditions against the number of training conditions."""
    if not parts:
        return pd.DataFrame()
    n = len(_training_conditions(adata)[1])
    blocks = []
    for share, table in [(1.0, whole), *((task.share, part) for task, part in parts.items())]:
        rows = table.rows[(table.rows["seed"] == 0) & table.rows["metric"].isin(table.metrics)]
        means = rows.groupby(["method", "kind", "metric"], sort=False, as_index=False)["value"].mean()
        blocks.append(means.assign(share=share, conditions=_n_conditions(share, n)))
    return pd.concat(blocks, ignore_index=True).drop_duplicates(["method", "metric", "share"], ignore_index=True)


def compare(
    adata: AnnData,
    models: Sequence[str],
    *,
    split: str | Split | os.PathLike[str] | None = None,
    seeds: int = 1,
    budget_steps: int | None = None,
    budget_seconds: float | None = None,
    budget_parameters: int | None = None,
    learning_curve: Sequence[float] = (),
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
        ``backbone/space``, such as ``mlp/pca`` or ``mylab.retnet:RetNet/raw``, or paths of recipes (`counterflow.contender`).
    split
        A name of `counterflow.data.splits.SPLITS`, a split file, or a `Split`; None takes the declared ``split_key``.
    seeds
        Trainings of every model; the table shows their mean.
    budget_steps, budget_seconds
        Optimiser steps, or processor seconds, that every model is trained for. Default: 200 steps.
    budget_parameters
        Set the width of every backbone so that it has about this many parameters. Default: the sizes as they come.
    learning_curve
        Shares of the training conditions, such as ``(0.25, 0.5)``, on which everything is trained again (seed 0).
    out
        Directory of the results: ``table.csv`` (long), ``summary.md``, ``summary.json``, ``split.json``, ``report.html``, and ``rows/``
        with what is finished.
    model_options, train_options
        Further arguments of `CounterFlow` and `CounterFlow.train`, the same for all models. With ``n_top_genes`` the baselines and
        the ceiling are scored on the chosen genes too.
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
        For an unknown split, backbone or space, a share that is none, or if `out` holds another comparison.
    DataError
        If a cell sits in two sets of the split, or the split is not what its name promises.

    Notes
    -----
    A perturbation that a model knows nothing about gets the mean effect (``on_unknown="mean"``), as the baselines give it. A model that
    cannot be trained is named in the notes of the table; the others go on.
    """
    budget = Budget(budget_steps, budget_seconds, budget_parameters)
    model_options, train_options = dict(model_options or {}), dict(train_options or {})
    if (train_options.get("devices", 1), train_options.get("num_nodes", 1)) != (1, 1):
        raise ConfigError("a comparison gives every model the same processor time: devices=1 (fit takes more)")
    contenders = {str(one): one for one in map(Contender.of, models)}
    if len(contenders) < len(models):
        raise ConfigError(f"two of the models have one name: {', '.join(map(str, models))}")
    if not all(0 < share < 1 for share in learning_curve):
        raise ConfigError(f"learning_curve={list(learning_curve)}: shares of the training conditions, between 0 and 1")
    held_out, used = _with_split(adata, split)
    audit_split(held_out, used)
    n_top_genes = model_options.pop("n_top_genes", None)
    if n_top_genes is not None:  # chosen here, so that rules and models are scored on the same genes
        if CHOICE in held_out.uns:
            raise ConfigError(f"n_top_genes={n_top_genes}, but choose_genes has chosen the genes of this AnnData: leave one of them out")
        choose_genes(held_out, n_top_genes)
    named = {"dataset": dataset, "split": used.name if used is not None else setup_of(held_out).split_key or ""}
    path = Path(out)
    (path / "rows").mkdir(parents=True, exist_ok=True)
    plan = {
        "data": data_hash(held_out.obs, _keys(setup_of(held_out))),
        "shape": list(held_out.shape),
        "split": hashlib.sha256("\n".join(held_out.obs[SPLIT_COLUMN].astype(str)).encode()).hexdigest(),
        "setup": setup_of(held_out).to_dict(),
        "budget": asdict(budget),
        "named": named,
        "genes": None if CHOICE not in held_out.uns else len(held_out.uns[CHOICE]["genes"]),
        "model_options": repr(sorted(model_options.items())),
        "train_options": repr(sorted(train_options.items())),
        "metrics": list(metrics),
        "n_halvings": n_halvings,
    }
    recipes = {name: repr(one) for name, one in contenders.items() if "/" not in name}
    plan |= {"recipes": recipes} if recipes else {}
    _check_plan(path, plan, resume)
    if used is not None:
        used.save(path / "split.json")
    how: dict[str, Any] = {"metrics": metrics, "n_halvings": n_halvings, **named}
    watch = _Watch(progress)

    if not _finished(path, BASELINES_FILE):
        watch.say("scoring the simple baselines")
        _keep(path, BASELINES_FILE, evaluate({}, held_out, baselines=applicable(held_out), progress=watch.detail, **how))
    tasks = [Task(model, seed) for seed in range(seeds) for model in contenders]
    tasks += [Task(model, 0, share) for share in learning_curve for model in [*contenders, BASELINES_FILE]]
    left = [task for task in tasks if not _finished(path, task.file)]
    failed = []
    for i, task in enumerate(left):
        watch.start(str(task), i, len(left))
        try:
            one = contenders.get(task.model, Contender(task.model))
            options = {"model": {**model_options, **one.model}, "train": {**train_options, **one.train}, "predict": one.predict}
            _keep(path, task.file, _train_and_score(held_out, task, budget, options, how))
        except CounterflowError as error:
            failed.append(f"{task} failed: {str(error).splitlines()[0]}")
            watch.say(failed[-1])
    whole = [BASELINES_FILE, *(task.file for task in tasks if task.share == 1)]
    done = {name: Table.load(path / "rows" / name) for name in [*whole[1:], whole[0], *(t.file for t in tasks)] if _finished(path, name)}
    table = concat(done[name] for name in [*whole[1:], whole[0]] if name in done)
    notes = (f"Budget of every model: {budget}. Unknown perturbations get the mean effect.", *table.notes, *failed)
    notes += tuple(f"{one}: {' '.join(one.about.split())}" for one in contenders.values() if one.about)
    parts = {task: done[task.file] for task in tasks if task.share < 1 and task.file in done}
    table = replace(table, notes=notes, learning_curve=_curve(table, parts, held_out))
    table.save(path)
    write_report(table, path / "report.html", title=f"Comparison: {dataset or 'held-out conditions'}")
    watch.say(f"done: {path / 'summary.md'}")
    return table


class WithMean:
    """A model that answers for perturbations it knows nothing about with the mean effect."""

    def __init__(self, model: CounterFlow, options: Mapping[str, Any] | None = None) -> None:
        self.model, self.options = model, dict(options or {})

    def predict(self, adata: AnnData, conditions: pd.DataFrame) -> AnnData:
        """As `CounterFlow.predict`, with the options of a recipe."""
        return self.model.predict(adata, conditions, **{"on_unknown": "mean", **self.options})

    @property
    def genes(self) -> tuple[str, ...]:
        """Of the model."""
        return self.model.genes

    def effects(self, adata: AnnData, conditions: pd.DataFrame, cells: float, seed: int) -> Iterator[PredictedEffect]:
        """As `CounterFlow.effects`."""
        return self.model.effects(adata, conditions, cells, seed, on_unknown="mean")

    def audit(self, adata: AnnData, subset: str = "test") -> str:
        """As `CounterFlow.audit`."""
        return self.model.audit(adata, subset, on_unknown="mean")


def _train_and_score(adata: AnnData, task: Task, budget: Budget, given: Mapping[str, Mapping[str, Any]], how: dict[str, Any]) -> Table:
    part = task.part_of(adata)
    if task.model == BASELINES_FILE:
        return evaluate({}, adata, baselines=applicable(part), trained_on=part, **how)
    forget_peak_memory()
    options = {"seed": task.seed, **given["model"]}
    model = CounterFlow(part, **options)
    if budget.parameters is not None:
        width = width_for(budget.parameters, model)
        model = CounterFlow(part, **options | {"backbone_kwargs": {**(options.get("backbone_kwargs") or {}), "width": width}})
    started, wall = time.process_time(), time.monotonic()
    model.train(max_steps=budget.steps, max_seconds=budget.seconds, **{"progress": False, **given["train"]})
    trained, trained_wall = time.process_time() - started, time.monotonic() - wall
    started = time.process_time()
    table = evaluate({task.model: WithMean(model, given["predict"])}, adata, baselines=(), trained_on=part, **how)
    cost = {
        "method": task.model,
        "seed": task.seed,
        "steps": model.n_steps_trained,
        "train_cpu_s": round(trained, 1),
        "train_wall_s": round(trained_wall, 1),
        "score_cpu_s": round(time.process_time() - started, 1),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "backbone_parameters": sum(p.numel() for p in model.module.backbone.parameters()),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "function_evaluations": function_evaluations(model),
    }
    rows = table.rows[table.rows["method"] == task.model].assign(seed=task.seed)
    shown = Examples() if task.seed or task.share < 1 else table.examples
    sure = table.coverage.assign(seed=task.seed) if len(table.coverage) and task.share == 1 else pd.DataFrame()
    return Table(rows, table.self_test, pd.DataFrame([cost]), table.notes, shown, coverage=sure)


def function_evaluations(model: CounterFlow) -> int:
    """Calls of the backbone that one predicted cell takes, beside those that measure a context once."""
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
        once = len(calls)
        model.predict(conditions=table, n_cells=BLOCK + 1)  # one block more
    finally:
        handle.remove()
    return len(calls) - 2 * once


def _keys(setup: Setup) -> Keys:
    return Keys(setup.perturbation_key, setup.control, setup.delimiter, setup.match_keys, setup.dose_key, setup.time_key)


def _with_split(adata: AnnData, split: str | Split | os.PathLike[str] | None) -> tuple[AnnData, Split | None]:
    """A copy of `adata` with the split in one column, and the split."""
    setup = setup_of(adata)
    held_out = some_cells(adata, np.arange(adata.n_obs)) if is_on_disk(adata) else adata.copy()
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
