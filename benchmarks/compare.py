"""Compare backbones and spaces on the real screens under one budget: floor, all baselines, ceiling, verdicts, one report for each.

::

    python benchmarks/compare.py --data ../shared/data --only kang norman --seconds 60

A run that was stopped goes on where it was. Small summaries go to ``benchmarks/results/compare_NAME.json``, from which the README's
tables are written (`benchmarks/readme_tables.py`); everything else, with the HTML report, stays under `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import counterflow as cf
from counterflow.compare import compare
from counterflow.data.split_file import Keys
from counterflow.data.splits import build_split
from counterflow.evaluate.table import Table

RESULTS = Path(__file__).parent / "results"
BACKBONES = ("mlp", "dit", "set", "ssm")


@dataclass(frozen=True)
class Screen:
    """A real screen: its file, its declaration, what is held out, and the models compared by default."""

    file: str
    split: str
    arguments: dict[str, Any] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    spaces: tuple[str, ...] = ("pca", "raw")
    n_top_genes: int | None = None
    most_cells: int | None = None  # of each condition and context

    @property
    def models(self) -> list[str]:
        """Every backbone in every space."""
        return [f"{backbone}/{space}" for space in self.spaces for backbone in BACKBONES]


SCREENS = {
    "kang": Screen(
        "kang2018_pbmc_ifnb.h5ad",
        "unseen_context",
        {"held_out": "NK"},
        {"match_keys": ["cell_type"], "library_size_key": "n_counts_full"},
        ("pca", "raw", "latent"),
        n_top_genes=1000,  # one token per gene: 6,547 of them take minutes a step on a core
    ),
    "norman": Screen("norman2019_k562_crispra.h5ad", "unseen_combination", setup={"library_size_key": "n_counts_full"}),
    "a549": Screen("cao2018_a549_dex_timecourse.h5ad", "unseen_time", {"level": 1.0}, {"time_key": "time_h"}),
    "schraivogel": Screen(
        "schraivogel2020_k562_tapseq.h5ad", "unseen_context", {"held_out": "TAP2"}, {"match_keys": ["batch"]}, most_cells=200
    ),
    "mcfaline": Screen(  # the negative control: next to no effect to be found
        "mcfaline2024_gbm_crispri.h5ad",
        "unseen_context",
        {"held_out": "A172"},
        {"match_keys": ["cell_type"], "library_size_key": "n_counts_full"},
    ),
}


def run(name: str, options: argparse.Namespace) -> None:
    screen = SCREENS[name]
    adata = cf.read_h5ad(options.data / screen.file)
    if screen.most_cells is not None:
        shuffled = adata.obs.sample(frac=1, random_state=0)
        chosen = shuffled.groupby(["perturbation", *screen.setup.get("match_keys", ())], observed=True).head(screen.most_cells)
        adata = adata[adata.obs_names.isin(chosen.index)].copy()
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", **screen.setup)
    keys = Keys("perturbation", "control", context_key=screen.setup.get("match_keys", ()), time_key=screen.setup.get("time_key"))
    split = build_split(screen.split, adata.obs, keys, val_fraction=0.0, **screen.arguments)
    started = time.monotonic()
    table = compare(
        adata,
        options.models or screen.models,
        split=split,
        seeds=options.seeds,
        budget_steps=options.steps,
        budget_seconds=None if options.steps else options.seconds,
        out=options.out / name,
        model_options={} if screen.n_top_genes is None else {"n_top_genes": screen.n_top_genes},
        train_options={"batch_size": options.batch_size},
        dataset=name,
    )
    save(name, screen, table, time.monotonic() - started)
    print(table.to_markdown())


def save(name: str, screen: Screen, table: Table, wall: float) -> None:
    summary = table.summary()[["metric", "method", "kind", "value", "lo", "hi", "S", "n", "best_baseline"]]
    content = {
        "data": name,
        "split": f"{screen.split} {' '.join(f'{k}={v}' for k, v in screen.arguments.items())}".strip(),
        "notes": [*table.notes, *([f"At most {screen.most_cells} cells of each condition and context."] if screen.most_cells else [])],
        "self_test": table.self_test,
        "wall_s_of_the_last_call": round(wall),
        "threads": torch.get_num_threads(),
        "verdicts": {model: table.verdict(model) for model in table.models},
        "costs": json.loads(table.costs.to_json(orient="records")),
        "summary": json.loads(summary.to_json(orient="records", double_precision=4)),
    }
    (RESULTS / f"compare_{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--only", nargs="*", default=list(SCREENS), choices=list(SCREENS))
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--seconds", type=float, default=60, help="processor seconds of each training")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps of each training, in place of seconds")
    parser.add_argument("--batch-size", type=int, default=128, help="of every model: a larger one gives token networks too few steps")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        run(name, options)


if __name__ == "__main__":
    main()
