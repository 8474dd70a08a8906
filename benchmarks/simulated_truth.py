"""Error to the *true* counterfactual mean of hidden pairs, with interactions and without, over seeds of the simulator.

    python benchmarks/simulated_truth.py [--seeds 3] [--out benchmarks/results/simulated_truth.json]

Without interactions log rates are additive, within a cell type. The mean of log1p expression is not quite (zeros, and rates that add
up to one), so the rule is also shown where it is the truth (``additive log rates``), and with so many cells that noise counts little.
Everything else is that of `counterflow demo`.
"""

import argparse
import json
import platform
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

import counterflow
from counterflow import demo
from counterflow.spaces.counts import cell_seeds, transport

LOG_RATES = "additive log rates"
RULES = ("control", "mean", "additive", "additive+ct")
SETTINGS = ((1.0, 70), (0.0, 70), (0.0, 700))  # interaction, cells per condition


class AdditiveLogRates:
    """Sum of the parts' effects on the log mean rate of each gene, within each cell type; controls are moved by count transport."""

    def __init__(self, adata: AnnData) -> None:
        self.train = adata[(adata.obs["split"] == "train").to_numpy()]

    def rate(self, label: str, cell_type: str) -> np.ndarray:
        """Share of each gene in the counts of the training cells of one condition and type."""
        obs = self.train.obs
        counts = self.train.X[((obs["perturbation"] == label) & (obs["cell_type"] == cell_type)).to_numpy()]
        return (np.asarray(counts.sum(0)).ravel() + 0.5) / counts.sum()

    def predict(self, controls: AnnData, pair: str) -> AnnData:
        """The controls under `pair`, log1p of counts per 10,000 in ``X``."""
        moved = controls.copy()
        dense = controls.X.toarray().astype(np.int64)
        for cell_type in controls.obs["cell_type"].unique():
            rows = (controls.obs["cell_type"] == cell_type).to_numpy()
            before = self.rate("control", cell_type)
            after = before * np.prod([self.rate(part, cell_type) / before for part in pair.split("+")], axis=0)
            library = dense[rows].sum(1, keepdims=True)
            seeds = cell_seeds(list(controls.obs_names[rows]))
            dispersion = np.full(len(before), 5.0)
            dense[rows] = transport(dense[rows], library * before, library * after * before.sum() / after.sum(), dispersion, 0, seeds)
        moved.X = sparse.csr_matrix(np.log1p(1e4 * dense / np.maximum(dense.sum(1, keepdims=True), 1)))
        return moved


def one(seed: int, interaction: float, cells: int) -> dict:
    start = perf_counter()
    screen, hidden = demo.screen_with_hidden_pairs(seed, interaction=interaction, cells_per_condition=cells)
    model = demo.fit(screen.adata, seed=seed)
    fitted = perf_counter()
    errors = demo.errors_to_truth(
        screen, hidden, {**demo.fit_rules(screen.adata, RULES), LOG_RATES: AdditiveLogRates(screen.adata), demo.MODEL: model}
    )
    return {
        "seed": seed,
        "interaction": interaction,
        "cells_per_condition": cells,
        "trust": {kind: [round(trust.mean, 3), trust.spread] for kind, trust in model.trust.items()},
        "hidden_pairs": len(hidden),
        "rmse": {name: round(float(value), 5) for name, value in errors.mean().items()},
        "pairs_where_best": {name: int((errors.idxmin(axis=1) == name).sum()) for name in errors},
        "fit_seconds": round(fitted - start, 1),
        "predict_seconds": round(perf_counter() - fitted, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="simulator seeds 0, 1, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "simulated_truth.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for interaction, cells in SETTINGS:
        for seed in range(options.seeds):
            rows.append(one(seed, interaction, cells))
            print(
                f"interaction {interaction:g}, {cells} cells, seed {seed}: {rows[-1]['rmse']}, fit {rows[-1]['fit_seconds']} s", flush=True
            )
    table = pd.DataFrame([{"interaction": row["interaction"], "cells": row["cells_per_condition"], **row["rmse"]} for row in rows])
    print(table.groupby(["interaction", "cells"]).mean().round(4).to_string())
    result = {
        "version": counterflow.__version__,
        "threads": options.threads,
        "machine": f"{platform.machine()} {platform.system()}, torch {torch.__version__}",
        "command": "python benchmarks/simulated_truth.py",
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
