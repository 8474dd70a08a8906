"""What genes share a token: error to the *true* mean of hidden pairs by grouping, after the same number of steps.

    python benchmarks/modules.py [--seeds 2] [--steps 300] [--out benchmarks/results/modules.json]

A simulated screen of 150 genes, the flow alone: raw space from control cells, no anchor, so that the network has to learn whole
effects. ``programs`` are the true programs of the simulator as gene sets (they overlap), the best that any pathway file could be;
``shuffled`` are sets of the same sizes of random genes; ``k at a time`` is the default, neighbours in the leaf order of the clustering.
"""

import argparse
import json
import platform
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import torch

from counterflow import CounterFlow, demo
from counterflow.data.simulate import SimulatedScreen, simulate_screen
from counterflow.data.split_file import Keys
from counterflow.data.splits import build_split

SCREEN = {"n_genes": 150, "n_perturbations": 20, "n_pairs": 20, "cells_per_condition": 70, "cells_control": 200, "n_cell_types": 2}
SMALL = {"width": 32, "depth": 2}  # of the token networks
RULES = ("control", "mean", "additive")


def declared_screen(seed: int) -> tuple[SimulatedScreen, list[str]]:
    """A screen, and the pairs of it that are held out."""
    screen = simulate_screen(**SCREEN, seed=seed)
    obs = screen.adata.obs
    split = build_split("unseen_combination", obs, Keys("perturbation", "control"), seed=seed)
    obs["split"] = split.labels(obs)
    CounterFlow.setup_anndata(screen.adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
    return screen, sorted(name for name, where in split.assignment.items() if where == "test")


def programs(screen: SimulatedScreen, shuffled: np.random.Generator | None = None) -> dict[str, list[str]]:
    """The genes that each program of the simulator moves."""
    names = list(screen.adata.var_names)
    names = names if shuffled is None else list(shuffled.permutation(names))
    return {f"P{p}": [names[g] for g in np.flatnonzero(row)] for p, row in enumerate(screen.biology.program_to_gene) if row.any()}


def cases(screen: SimulatedScreen, seed: int) -> dict[str, tuple[str, dict]]:
    """Name -> backbone and its options."""
    true, random = programs(screen), programs(screen, np.random.default_rng(seed))
    ways = {"k at a time": {}, "clusters": {"modules": "clusters"}, "programs": {"modules": true}, "shuffled": {"modules": random}}
    of_dit = {f"dit, {way}": ("dit", options) for way, options in ways.items()}
    ranked = {"dit, one gene": ("dit", {"genes_per_token": 1}), "dit, rank": ("dit", {"modules": "rank"})}
    others = {"ssm": ("ssm", {}), "longconv": ("longconv", {}), "set": ("set", {})}
    of_tokens = {name: (backbone, SMALL | kwargs) for name, (backbone, kwargs) in (of_dit | ranked | others).items()}
    return {"mlp": ("mlp", {})} | of_tokens


def one(seed: int, n_steps: int) -> list[dict]:
    screen, hidden = declared_screen(seed)
    methods, seconds, tokens = demo.fit_rules(screen.adata, RULES), {}, {}
    for name, (backbone, options) in cases(screen, seed).items():
        model = CounterFlow(
            screen.adata, backbone=backbone, backbone_kwargs=options, space="raw", source="control", anchor="none", seed=seed
        )
        start = process_time()
        model.train(max_steps=n_steps, batch_size=128, progress=False)
        seconds[name] = round(process_time() - start, 1)
        methods[name] = model
        layout = getattr(getattr(model.module.backbone, "tokenizer", None), "layout", None)
        tokens[name] = None if layout is None else len(layout.members) if hasattr(layout, "members") else layout.n_tokens
    errors = demo.errors_to_truth(screen, hidden, methods).mean()
    rows = [{"seed": seed, "name": name, "rmse": round(float(errors[name]), 4)} for name in methods]
    for row in rows:
        row |= {"seconds": seconds.get(row["name"]), "tokens": tokens.get(row["name"])}
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "modules.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in range(options.seeds) for row in one(seed, options.steps)]
    print(pd.DataFrame(rows).groupby("name", sort=False)[["rmse", "seconds", "tokens"]].mean().round(4).to_string())
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "steps": options.steps,
        "command": "python benchmarks/modules.py",
    }
    options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
