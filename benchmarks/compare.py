"""Reproduce the comparison tables: every model on every data set under one budget, tables and reports under `--out`.

::

    python benchmarks/compare.py --data ../shared/data --only kang norman --steps 2000

A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

import counterflow as cf
from counterflow.compare import compare
from counterflow.data.split_file import Keys
from counterflow.data.splits import build_split

MODELS = ("mlp/pca", "mlp/raw", "dit/raw", "set/raw", "ssm/raw", "mlp/latent", "dit/latent", "set/latent", "ssm/latent")

SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "kang": (
        "kang2018_pbmc_ifnb.h5ad",
        {"match_keys": ["cell_type"], "covariate_keys": ["cell_type"], "library_size_key": "n_counts_full"},
    ),
    "norman": ("norman2019_k562_crispra.h5ad", {"library_size_key": "n_counts_full"}),
    "schraivogel": ("schraivogel2020_k562_tapseq.h5ad", {"match_keys": ["batch"]}),
    "mcfaline": ("mcfaline2024_gbm_crispri.h5ad", {"match_keys": ["cell_type"], "library_size_key": "n_counts_full"}),
}
"""Name -> file and declaration."""

SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "kang": ("unseen_context", {"held_out": "NK"}),
    "norman": ("unseen_combination", {}),
    "schraivogel": ("unseen_context", {"held_out": "TAP2"}),
    "mcfaline": ("unseen_context", {"held_out": "A172"}),  # the negative control: next to no effect to be found
}


def run(name: str, data: Path, out: Path, models: list[str], steps: int, seeds: int) -> None:
    file, declared = SETUPS[name]
    adata = cf.read_h5ad(data / file)
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", **declared)
    keys = Keys("perturbation", "control", context_key=declared.get("match_keys", ()))
    split, arguments = SPLITS[name]
    held_out = build_split(split, adata.obs, keys, val_fraction=0.0, **arguments)
    table = compare(adata, models, split=held_out, seeds=seeds, budget_steps=steps, out=out / name, dataset=name)
    print(table.to_markdown())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--only", nargs="*", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.only:
        run(name, arguments.data, arguments.out, arguments.models, arguments.steps, arguments.seeds)


if __name__ == "__main__":
    main()
