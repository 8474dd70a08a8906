"""The default recipe on held-out conditions of small real screens, beside every simple rule that applies, the floor and the ceiling.

::

    python benchmarks/accuracy.py [--only kang mcfaline] [--seeds 3] [--validate]

Every model is fitted with no options; three training seeds are scored against the same random halves of the real cells. ``--validate``
takes the test conditions out of the file and holds out other ones of the same kind in their place: what choices are made on (see
`docs/decisions.md`). One JSON file for each task is written to ``benchmarks/results/accuracy/``; a task that has one is not repeated.
`accuracy_doc.py` makes tables of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import counterflow as cf
from counterflow.compare import WithMean
from counterflow.evaluate.baselines import applicable
from counterflow.evaluate.evaluate import evaluate

MEANS = (
    "pearson_delta", "pearson_delta_pertref", "r2_mean", "mse", "wmse", "pds_cosine", "energy", "mmd", "coverage", "w1_de50", "des",
    "std_log2ratio",
)  # fmt: skip
CLASSIFIED = ("c2st_gene",)
BOTH_SEEN = ("KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2")
ONE_SEEN = ("CNN1+MAPK1", "SET+KLF1", "SGK1+TBX3")
SINGLE_FOLDS = 4


@dataclass(frozen=True)
class Fold:
    """A file with what is held out: the labels of ``split``, and cells that no one may use."""

    name: str
    split: np.ndarray  # train | test, of every cell
    dropped: np.ndarray  # mask


@dataclass(frozen=True)
class Task:
    """One row of the table: a file, how it is declared, and its folds."""

    file: str
    setup: dict[str, Any]
    folds: Callable[[pd.DataFrame, bool], Iterator[Fold]]  # (obs, validate)


def held_out(name: str, test: np.ndarray, dropped: np.ndarray | None = None) -> Fold:
    """Mask of the cells to score -> fold."""
    return Fold(name, np.where(test, "test", "train"), np.zeros(len(test), dtype=bool) if dropped is None else dropped)


def levels(column: str) -> Callable[[pd.DataFrame, bool], Iterator[Fold]]:
    """Each level of a column in turn; in validation the next but two, without the first."""

    def folds(obs: pd.DataFrame, validate: bool) -> Iterator[Fold]:
        here, perturbed = obs[column].astype(str).to_numpy(), (obs["perturbation"] != "control").to_numpy()
        names = sorted(set(here))
        for i, level in enumerate(names):
            if not validate:
                yield held_out(level, perturbed & (here == level))
            elif len(names) > 2:
                other = names[(i + min(3, len(names) - 2)) % len(names)]
                yield held_out(f"{other} without {level}", perturbed & (here == other), perturbed & (here == level))

    return folds


def conditions(names: tuple[str, ...]) -> Callable[[pd.DataFrame, bool], Iterator[Fold]]:
    """Each condition in turn; in validation all the others, without it."""

    def folds(obs: pd.DataFrame, validate: bool) -> Iterator[Fold]:
        here = obs["perturbation"].astype(str).to_numpy()
        for name in names:
            if validate:
                others = [other for other in names if other != name]
                yield held_out(f"others without {name}", np.isin(here, others), here == name)
            else:
                yield held_out(name, here == name)

    return folds


def singles(obs: pd.DataFrame, validate: bool) -> Iterator[Fold]:
    """A quarter of the single perturbations in turn; no combination that contains one stays."""
    here = obs["perturbation"].astype(str).to_numpy()
    names = sorted({name for name in here if "+" not in name and name != "control"})
    dealt = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    parts = [set(label.split("+")) for label in here]
    for fold in range(SINGLE_FOLDS):
        test = set(dealt[fold::SINGLE_FOLDS])
        gone = np.zeros(len(here), dtype=bool)
        if validate:
            gone |= np.array([bool(p & test) for p in parts])
            test = set(dealt[(fold + 1) % SINGLE_FOLDS :: SINGLE_FOLDS])
        scored = np.isin(here, list(test)) & ~gone
        gone |= np.array([bool(p & test) for p in parts]) & ~scored
        yield held_out(f"fold {fold}", scored, gone)


def times(level: float) -> Callable[[pd.DataFrame, bool], Iterator[Fold]]:
    """One time. With two of them there is nothing to validate on."""

    def folds(obs: pd.DataFrame, validate: bool) -> Iterator[Fold]:
        if not validate:
            yield held_out(f"{level:g} h", (obs["time_h"].astype(float) == level).to_numpy())

    return folds


def cells(obs: pd.DataFrame, validate: bool) -> Iterator[Fold]:
    """A fifth of the perturbed cells; in validation another fifth, without it."""
    drawn = np.random.default_rng(0).random(len(obs))
    perturbed = (obs["perturbation"] != "control").to_numpy()
    test = perturbed & (drawn < 0.2)
    yield held_out("cells", perturbed & (0.2 <= drawn) & (drawn < 0.4), test) if validate else held_out("cells", test)


FILES = {
    "kang": "kang2018_pbmc_ifnb.h5ad",
    "donors": "kang2018_pbmc_ifnb_two_donors.h5ad",
    "norman": "norman2019_k562_crispra.h5ad",
    "a549": "cao2018_a549_dex_timecourse.h5ad",
    "schraivogel": "schraivogel2020_k562_tapseq.h5ad",
    "mcfaline": "mcfaline2024_gbm_crispri.h5ad",
}
SETUP: dict[str, dict[str, Any]] = {
    "kang": {"library_size_key": "n_counts_full", "match_keys": ["cell_type"]},
    "donors": {"match_keys": ["donor", "cell_type"]},
    "norman": {"library_size_key": "n_counts_full"},
    "a549": {"time_key": "time_h"},
    "schraivogel": {"match_keys": ["batch"]},
    "mcfaline": {"library_size_key": "n_counts_full", "match_keys": ["cell_type"]},
}
TASKS = {
    "kang": Task("kang", SETUP["kang"], levels("cell_type")),
    "donors": Task("donors", SETUP["donors"], levels("donor")),
    "norman_both_seen": Task("norman", SETUP["norman"], conditions(BOTH_SEEN)),
    "norman_one_seen": Task("norman", SETUP["norman"], conditions(ONE_SEEN)),
    "norman_single": Task("norman", SETUP["norman"], singles),
    "a549_1h": Task("a549", SETUP["a549"], times(1.0)),
    "a549_3h": Task("a549", SETUP["a549"], times(3.0)),
    "schraivogel": Task("schraivogel", SETUP["schraivogel"], levels("batch")),
    "mcfaline": Task("mcfaline", SETUP["mcfaline"], levels("cell_type")),
    **{f"random_{file}": Task(file, SETUP[file], cells) for file in FILES},
}


def run(task: Task, fold: Fold, adata: AnnData, seeds: int, options: dict[str, Any]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Scores of every method on every held-out condition, and what each fit cost and learnt."""
    adata.obs["split"] = fold.split
    adata = adata[~fold.dropped].copy()
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **task.setup)
    models, fits = {}, []
    for seed in range(seeds):
        start = process_time()
        model = cf.CounterFlow(adata, seed=seed, **options)
        model.train(progress=False)
        trust = {kind: [round(t.mean, 3), t.spread] for kind, t in model.trust.items()}
        fits.append({"fold": fold.name, "seed": seed, "cpu_seconds": round(process_time() - start, 1), "trust": trust})
        models[f"counterflow {seed}"] = WithMean(model)
    rules = applicable(adata)
    rows = evaluate(models, adata, metrics=MEANS, baselines=rules).rows
    few = [name for name in rules if name.endswith("+ct") or name in ("quantile_map", "qmap_top2", "interpolate", "resample_nearest")]
    classified = evaluate({"counterflow 0": models["counterflow 0"]}, adata, metrics=CLASSIFIED, baselines=few, n_halvings=1).rows
    return pd.concat([rows, classified[classified["metric"].isin(CLASSIFIED)]]).assign(fold=fold.name), fits


def averages(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean over conditions of each method, training seed and metric, with a 95 % bootstrap interval over conditions."""
    draw = np.random.default_rng(0)
    out = []
    for (method, kind, metric), part in rows.groupby(["method", "kind", "metric"], sort=False):
        values = part["value"].dropna().to_numpy()
        if len(values):
            low, high = np.quantile(draw.choice(values, (2000, len(values))).mean(1), [0.025, 0.975])
            entry = {"method": method, "kind": kind, "metric": metric, "value": values.mean(), "low": low, "high": high, "n": len(values)}
            out.append({key: round(float(x), 5) if isinstance(x, float) else x for key, x in entry.items()})
    return out


def main() -> None:
    warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers|litlogger).*")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validate", action="store_true", help="other conditions, without those of the test")
    parser.add_argument("--model", default="{}", help="JSON: options of CounterFlow, for the search; the table is made with none")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = options.out / f"{name}{'.validation' if options.validate else ''}.json"
        if path.exists():
            continue
        task, tables, fits = TASKS[name], [], []
        obs = cf.read_h5ad(options.data / FILES[task.file]).obs
        for fold in task.folds(obs, options.validate):
            adata = cf.read_h5ad(options.data / FILES[task.file])
            rows, cost = run(task, fold, adata, options.seeds, json.loads(options.model))
            tables.append(rows)
            fits += cost
            shown = rows[rows["metric"].isin(["pearson_delta", "energy"])].groupby(["method", "metric"])["value"].mean().unstack().round(3)
            print(name, fold.name, cost[0]["trust"], [fit["cpu_seconds"] for fit in cost], "\n", shown.to_string(), flush=True)
        if not tables:
            continue
        rows = pd.concat(tables, ignore_index=True)
        result = {
            "task": name,
            "validation": options.validate,
            "version": cf.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": options.threads,
            "fits": fits,
            "summary": averages(rows),
            "conditions": json.loads(
                rows[rows["metric"].isin(["pearson_delta", "energy"]) & rows["method"].str.match("counterflow|additive|control|split_half")]
                .loc[:, ["fold", "condition", "context", "method", "metric", "value"]]
                .round(4)
                .to_json(orient="records")
            ),
        }
        path.write_text(json.dumps(result, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
