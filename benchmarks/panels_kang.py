"""Effects of interferon on genes that were not in training, on real cells: Kang et al. 2018.

    python benchmarks/panels_kang.py [--seeds 2] [--seconds 60] [--out benchmarks/results/panels_kang.json]

The 240 most variable genes (of control cells). A model is trained on panel A, half of them; panel B holds the other half and half of A. On
panel B it sees control cells only (`on_panel`). Scored are the effects on the genes that were new, over the seven cell types, against the
measured effects; `zero` is the control mean, `ridge` carries measured effects on panel A over by the same features of genes.
"""

import argparse
import json
import os
import platform
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from panels import SMALL, mean_log
from sklearn.linear_model import RidgeCV

import counterflow as cf
from counterflow.conditions.gene_features import carried_over, gene_loadings
from counterflow.spaces.base import log_normalise

GENES = 240
SETUP = {"perturbation_key": "perturbation", "control": "control", "match_keys": ["cell_type"], "covariate_keys": ["cell_type"]}
LIBRARY = "n_counts_full"


def panels(adata, seed):
    """Genes of panel A and panel B."""
    control = adata[adata.obs["perturbation"] == "control"].copy()
    sc.pp.normalize_total(control, target_sum=1e4)
    sc.pp.log1p(control)
    sc.pp.highly_variable_genes(control, n_top_genes=GENES)
    genes = np.random.default_rng(seed).permutation(control.var_names[control.var["highly_variable"]])
    half = GENES // 2
    return list(genes[:half]), [*genes[half // 2 : half], *genes[half:]]


def log_mean(adata):
    """Mean log expression per 10,000 counts of the whole cell (G)."""
    return np.asarray(log_normalise(adata.X.tocsr(), adata.obs[LIBRARY].to_numpy(dtype=np.float32)).mean(0)).ravel()


def one(adata, seed, seconds):
    """Scores of each method on the new genes of panel B."""
    first, second = panels(adata, seed)
    new = ~np.isin(second, first)
    a, b = adata[:, first].copy(), adata[:, second].copy()
    for panel in (a, b):
        cf.CounterFlow.setup_anndata(panel, **SETUP, library_size_key=LIBRARY)
    network = {"backbone": "set", "backbone_kwargs": SMALL | {"gene_features": "coexpression"}, "space": "raw"}
    model = cf.CounterFlow(a, **network, source="control", anchor="none", seed=seed)
    model.train(max_seconds=seconds, batch_size=128, progress=False)
    moved = model.on_panel(b[(b.obs["perturbation"] == "control").to_numpy()].copy())
    condition = next(name for name in b.obs["perturbation"].unique() if name != "control")
    control_b = b[(b.obs["perturbation"] == "control").to_numpy()]
    expression = log_normalise(control_b.X.tocsr(), control_b.obs[LIBRARY].to_numpy(dtype=np.float32))
    known = np.where(new, -1, np.cumsum(~new) - 1)
    loadings = gene_loadings(expression[:, ~new])
    features = carried_over(loadings, known, expression)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    truth, predicted = [], {"zero": [], "ridge": [], "set on the new panel": []}
    for kind in sorted(b.obs["cell_type"].unique()):
        here = (b.obs["cell_type"] == kind).to_numpy()
        before, after = (b[here & (b.obs["perturbation"] == name).to_numpy()].copy() for name in ("control", condition))
        effect = log_mean(after) - log_mean(before)
        truth.append(effect[new])
        predicted["zero"].append(np.zeros(new.sum()))
        predicted["ridge"].append(RidgeCV(np.logspace(-3, 3, 13)).fit(features[~new], effect[~new]).predict(features[new]))
        library = before.obs[LIBRARY].to_numpy()
        means = [mean_log(moved.predict(before, name, n_steps=3).layers["mean"], library) for name in (condition, "control")]
        predicted["set on the new panel"].append((means[0] - means[1])[new])
    rows = []
    target = np.concatenate(truth)
    for name, values in predicted.items():
        found = np.concatenate(values)
        pearson = float(np.corrcoef(found, target)[0, 1]) if found.any() else 0.0
        rmse = float(np.sqrt(((found - target) ** 2).mean()))
        rows.append({"seed": seed, "name": name, "pearson": round(pearson, 3), "rmse": round(rmse, 4)})
        print(rows[-1], flush=True)
    return [row | {"steps": model.n_steps_trained} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "panels_kang.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    adata = cf.read_h5ad(options.data / "kang2018_pbmc_ifnb.h5ad")
    rows = [row for seed in range(options.seeds) for row in one(adata, seed, options.seconds)]
    print(pd.DataFrame(rows).groupby("name", sort=False)[["pearson", "rmse"]].mean().round(4).to_string())
    about = {"torch": torch.__version__, "machine": platform.machine(), "seconds": options.seconds}
    options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
