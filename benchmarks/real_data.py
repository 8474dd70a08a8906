"""The default recipe on the small real screens, beside the simple rules and the split-half ceiling.

::

    python benchmarks/real_data.py [--only norman kang a549] [--seeds 3]

Norman: held-out pairs, a split per seed, by how many of their parts are seen. Kang: each cell type held out in turn. A549: the
1 h cells, between 0 and 3 h. Every row is scored against one random half of the real cells, mean over 5 halvings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pandas as pd
import torch
from anndata import AnnData

import counterflow as cf
from counterflow.compare import WithMean
from counterflow.data.split_file import Keys, Split
from counterflow.data.splits import build_split, folds
from counterflow.evaluate.evaluate import evaluate

METRICS = ("pearson_delta", "pearson_delta_pertref", "r2_mean", "mse", "energy")
FILES = {
    "norman": "norman2019_k562_crispra.h5ad",
    "kang": "kang2018_pbmc_ifnb.h5ad",
    "a549": "cao2018_a549_dex_timecourse.h5ad",
}
SETUP: dict[str, dict[str, Any]] = {
    "norman": {"library_size_key": "n_counts_full"},
    "kang": {"library_size_key": "n_counts_full", "match_keys": ["cell_type"]},
    "a549": {"time_key": "time_h"},
}
KEYS = {
    "norman": Keys("perturbation", "control"),
    "kang": Keys("perturbation", "control", context_key="cell_type"),
    "a549": Keys("perturbation", "control", time_key="time_h"),
}


def splits(name: str, obs: pd.DataFrame, seeds: int) -> Iterator[tuple[int, Split]]:
    """Training seed and split, one after the other; nothing is needed for validation."""
    for seed in range(seeds):
        if name == "norman":
            yield seed, build_split("unseen_combination", obs, KEYS[name], seed=seed, val_fraction=0.0)
        elif name == "kang":
            yield from ((seed, fold) for fold in folds("unseen_context", obs, KEYS[name], val_fraction=0.0))
        else:
            yield seed, build_split("unseen_time", obs, KEYS[name], level=1.0, val_fraction=0.0)


def one(adata: AnnData, name: str, seed: int, split: Split) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit with defaults; scores of every method on every held-out condition, and what the fit cost and chose."""
    adata.obs["split"] = split.labels(adata.obs)
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **SETUP[name])
    start = process_time()
    model = cf.CounterFlow(adata, seed=seed)
    model.train(progress=False)
    cost = process_time() - start
    rows = evaluate({"counterflow": WithMean(model)}, adata, metrics=METRICS, seed=seed).rows
    return rows.assign(data=name, fold=seed), {
        "data": name,
        "seed": seed,
        "split": split.name,
        "held_out": sorted(condition for condition, part in split.assignment.items() if part == "test")[:20] if name != "kang" else [],
        "fit_cpu_seconds": round(cost, 1),
        "flow_weight": {kind: round(weight, 3) for kind, weight in model.flow_weight.items()},
    }


def summary(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean over conditions per data set, stratum and metric, and the spread over seeds."""
    per_seed = rows.groupby(["data", "stratum", "method", "metric", "fold"], dropna=False)["value"].mean()
    table = per_seed.groupby(["data", "stratum", "method", "metric"], dropna=False).agg(["mean", "std", "count"]).reset_index()
    return json.loads(table.round(4).to_json(orient="records"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--only", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        adata = cf.read_h5ad(options.data / FILES[name])
        tables, fits = [], []
        for seed, split in splits(name, adata.obs, options.seeds):
            rows, fit = one(adata, name, seed, split)
            tables.append(rows)
            fits.append(fit)
            deltas = rows[rows["metric"] == "pearson_delta"].groupby("method")["value"].mean().round(3).to_dict()
            print(name, seed, deltas, fit["fit_cpu_seconds"], fit["flow_weight"], flush=True)
        result = {
            "version": cf.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": options.threads,
            "fits": fits,
            "summary": summary(pd.concat(tables, ignore_index=True)),
        }
        (options.out / f"real_{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
