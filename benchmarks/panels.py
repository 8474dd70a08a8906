"""Effects on genes that were not in training: predicted from what they are like in control cells.

    python benchmarks/panels.py [--seeds 1] [--seconds 60] [--out benchmarks/results/panels.json]

A simulated screen of 150 genes. A fifth of the genes (none that was perturbed) is taken out before training; then the model is put on the
whole panel (`on_panel`): of the new genes it sees control cells only. Scored are effects on the new genes, over twelve training conditions,
against the *true* effects: correlation over genes and conditions, and RMSE.

    zero            no effect
    ridge           measured effects on the other genes, carried over by a ridge on the same features (penalty by leaving genes out)
    new genes       the set network with gene_features, trained without these genes
    all genes       the same, trained with them
    mlp             the default network, trained with them (20 seconds)
"""

import argparse
import json
import platform
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV

from counterflow import CounterFlow
from counterflow.conditions.gene_features import carried_over, gene_loadings
from counterflow.data.simulate import simulate_screen
from counterflow.spaces.base import log_normalise

SETUP = {
    "perturbation_key": "perturbation",
    "control": "control",
    "match_keys": ["cell_type"],
    "library_size_key": "n_counts",
}
SMALL = {"width": 32, "depth": 1}  # a few hundred steps in a minute
SCREEN = {"n_genes": 150, "n_perturbations": 20, "n_pairs": 10, "cells_per_condition": 70, "cells_control": 400, "n_cell_types": 2}


def fit(adata, backbone, kwargs, seconds, seed):
    adata = adata.copy()
    CounterFlow.setup_anndata(adata, **SETUP)
    model = CounterFlow(adata, backbone=backbone, backbone_kwargs=kwargs, space="raw", source="control", anchor="none", seed=seed)
    model.train(max_seconds=seconds, batch_size=128, progress=False)
    return model


def mean_log(values, library):
    """Mean log expression of expected counts (G)."""
    return np.log1p(1e4 * values / library[:, None]).mean(0)


def by_ridge(adata, new, conditions):
    """Effects on the new genes, conditions x genes."""
    expression = log_normalise(adata.X.tocsr(), adata.obs["n_counts"].to_numpy())
    control = (adata.obs["perturbation"] == "control").to_numpy()
    known = np.where(new, -1, np.cumsum(~new) - 1)
    loadings = gene_loadings(expression[control][:, ~new])
    features = carried_over(loadings, known, expression[control])
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    before = np.asarray(expression[control].mean(0)).ravel()
    found = []
    for condition in conditions:
        effect = np.asarray(expression[(adata.obs["perturbation"] == condition).to_numpy()].mean(0)).ravel() - before
        found.append(RidgeCV(np.logspace(-3, 3, 13)).fit(features[~new], effect[~new]).predict(features[new]))
    return np.array(found)


def one(seed, seconds):
    screen = simulate_screen(**SCREEN, seed=seed)
    adata, conditions = screen.adata, screen.conditions
    perturbed = {part for name in conditions for part in name.split("+")}
    free = [i for i, gene in enumerate(adata.var_names) if gene not in perturbed]
    new = np.zeros(adata.n_vars, dtype=bool)
    new[np.random.default_rng(seed).choice(free, adata.n_vars // 5, replace=False)] = True
    controls = adata[(adata.obs["perturbation"] == "control").to_numpy()][:150]
    unperturbed = screen.true_mean("control")
    conditions = conditions[::3][:12]
    truth = np.array([screen.true_mean(name) - unperturbed for name in conditions])[:, new]

    featured = {"gene_features": "coexpression"}
    models = {
        "new genes": fit(adata[:, ~new], "set", SMALL | featured, seconds, seed).on_panel(adata),
        "all genes": fit(adata, "set", SMALL | featured, seconds, seed),
        "mlp": fit(adata, "mlp", {}, min(seconds, 20), seed),
    }
    predicted = {"zero": np.zeros_like(truth), "ridge": by_ridge(adata, new, conditions)}
    library = controls.obs["n_counts"].to_numpy()
    for name, model in models.items():
        means = [mean_log(model.predict(controls, condition, n_steps=3).layers["mean"], library) for condition in conditions]
        predicted[name] = (np.array(means) - mean_log(model.predict(controls, "control", n_steps=3).layers["mean"], library))[:, new]
    rows = []
    for name, values in predicted.items():
        pearson = float(np.corrcoef(values.ravel(), truth.ravel())[0, 1]) if values.any() else 0.0
        rmse = float(np.sqrt(((values - truth) ** 2).mean()))
        steps = models[name].n_steps_trained if name in models else None
        rows.append({"seed": seed, "name": name, "pearson": round(pearson, 3), "rmse": round(rmse, 4), "steps": steps})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "panels.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [row for seed in range(options.seeds) for row in one(seed, options.seconds)]
    print(pd.DataFrame(rows).groupby("name", sort=False)[["pearson", "rmse"]].mean().round(4).to_string())
    about = {"torch": torch.__version__, "machine": platform.machine(), "seconds": options.seconds}
    options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
