# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From predicted cells to differential expression
#
# Counterfactual cells are an AnnData with counts, so everything that is done to measured cells can be done to them. This page asks
# the question a biologist asks, *which genes change?*, of predicted cells with scanpy's own tools, and checks the answer against
# the real cells of held-out pairs, against a simple rule, and against the other half of the real cells, which is as good as it
# gets.

# %%
import os
import tempfile
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import counterflow as cf
from counterflow.data.split_file import Keys
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.metrics import compute

N_STEPS = int(os.environ.get("DE_STEPS", 200))  # optimiser steps: the default

# %%
screen = cf.simulate_screen(cells_per_condition=100, cells_control=800, n_cell_types=1, n_pairs=30, seed=2)
adata = screen.adata
keys = Keys(perturbation_key="perturbation", control="control")
adata.obs["split"] = cf.build_split("unseen_combination", adata.obs, keys, seed=0).labels(adata.obs)
cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split")
model = cf.CounterFlow(adata)
model.train(max_steps=N_STEPS, progress=False)
rule = BASELINES["additive+ct"]()  # adds the effects of both genes, and moves the counts of control cells by the sum
rule.train(adata)

# %% [markdown]
# ## One pair, five groups of cells
#
# Controls; two halves of the real cells of a held-out pair; and as many predicted ones, by the model and by the additive rule. As
# many, because a test calls more genes the more cells it has. (That is the most frequent mistake with generated cells: a million of
# them make everything significant.)

# %%
measured = adata.copy()
sc.pp.normalize_total(measured, target_sum=1e4)
sc.pp.log1p(measured)
is_control = measured.obs["perturbation"] == "control"
reference = measured[is_control & (measured.obs["split"] == "test")]  # controls that no model has seen
start = adata[is_control & (measured.obs["split"] == "train")]
held_out = sorted(set(adata.obs.loc[(adata.obs["split"] == "test") & ~is_control, "perturbation"].astype(str)))


def groups(pair, seed=0):
    """The five groups as one AnnData with `obs["group"]`."""
    real = measured[measured.obs["perturbation"] == pair]
    order = np.random.default_rng(seed).permutation(real.n_obs)
    n = real.n_obs // 2
    some = start[np.random.default_rng(seed).permutation(start.n_obs)[:n]]
    parts = {
        "control": reference,
        "real": real[order[:n]],
        "other half": real[order[n : 2 * n]],
        "counterflow": model.predict(some, pair),
        "additive rule": rule.predict(some, pair),
    }
    together = anndata.concat(parts, label="group", index_unique=" ")
    together.obs["group"] = pd.Categorical(together.obs["group"], list(parts))
    together.layers["per 10,000"] = together.X.expm1()
    together.uns["log1p"] = {"base": None}
    return together


strength = {pair: np.abs(screen.true_mean(pair) - screen.true_mean("control")).sum() for pair in held_out}
pair = max(strength, key=strength.get)
cells = groups(pair)
cells.obs["group"].value_counts(sort=False)

# %% [markdown]
# ## scanpy, unchanged
#
# Wilcoxon tests of every group against the controls, and the genes that change most in the real cells.

# %%
sc.tl.rank_genes_groups(cells, "group", reference="control", method="wilcoxon")
de = {
    group: sc.get.rank_genes_groups_df(cells, group).set_index("names").loc[cells.var_names]
    for group in cells.obs["group"].cat.categories[1:]
}
top = de["real"]["scores"].abs().sort_values(ascending=False).index[:12]
sc.pl.matrixplot(cells, list(top), "group", cmap="viridis", figsize=(7, 2.2), title=f"{pair}: mean log1p expression")

# %%
sc.pp.pca(cells, n_comps=20)
some = cells[cells.obs["group"].isin(["control", "real", "counterflow"])].copy()
sc.pl.pca(some, color="group", palette=["#999999", "#0072B2", "#D55E00"], size=40, title=pair)

# %% [markdown]
# Fold changes of all genes: predicted against real. Grey genes are not called in the real cells; r is the correlation over those
# that are.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True, sharex=True, layout="constrained")
called = de["real"]["pvals_adj"] < 0.05
for ax, name in zip(axes, ("counterflow", "additive rule", "other half"), strict=True):
    x, y = de["real"]["logfoldchanges"].clip(-4, 4), de[name]["logfoldchanges"].clip(-4, 4)
    ax.scatter(x[~called], y[~called], s=8, color="#bbbbbb", lw=0)
    ax.scatter(x[called], y[called], s=12, color="#D55E00" if name == "counterflow" else "#0072B2", lw=0)
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    ax.set(title=f"{name} (r = {np.corrcoef(x[called], y[called])[0, 1]:.2f})", xlabel="log2 fold change, real")
axes[0].set_ylabel("log2 fold change, predicted")
plt.show()

# %% [markdown]
# ## Over all held-out pairs
#
# For each pair: how far the called genes (adjusted p below .05) agree with those of the real cells, and with the *truth*, which
# only a simulator knows (genes whose true mean changes by more than .3). And two things beyond lists of genes: correlation of
# pseudobulk profiles, and the E-distance of clouds of cells on 20 principal components.

# %%
METHODS = ["other half", "counterflow", "additive rule"]


def pseudobulk(cells):
    """One profile per group: log1p of mean counts per 10,000."""
    means = sc.get.aggregate(cells, by="group", func="mean", layer="per 10,000")
    return pd.DataFrame(np.log1p(means.layers["mean"]), index=means.obs_names, columns=means.var_names)


rows = []
for number, pair in enumerate(held_out):
    cells = groups(pair, seed=number)
    sc.tl.rank_genes_groups(cells, "group", reference="control", method="wilcoxon")
    sc.pp.pca(cells, n_comps=20)
    tables = {group: sc.get.rank_genes_groups_df(cells, group).set_index("names").loc[cells.var_names] for group in ["real", *METHODS]}
    found = {group: set(table.index[table["pvals_adj"] < 0.05]) for group, table in tables.items()}
    change = screen.true_mean(pair) - screen.true_mean("control")
    changed = set(cells.var_names[np.abs(change) > 0.3])
    bulk = pseudobulk(cells)
    pcs = {group: cells.obsm["X_pca"][cells.obs["group"] == group] for group in ["real", *METHODS]}
    for name in METHODS:
        both = found["real"] & found[name]
        same = [np.sign(tables["real"].loc[gene, "scores"]) == np.sign(tables[name].loc[gene, "scores"]) for gene in both]
        effect = bulk.loc[name] - bulk.loc["control"], bulk.loc["real"] - bulk.loc["control"]
        rows.append(
            {
                "pair": pair,
                "method": name,
                "genes called": len(found[name]),
                "overlap with real (Jaccard)": len(both) / max(1, len(found["real"] | found[name])),
                "same direction": np.mean(same) if same else np.nan,
                "called and truly changed": len(found[name] & changed) / max(1, len(found[name])),
                "truly changed and called": len(found[name] & changed) / max(1, len(changed)),
                "pseudobulk r": np.corrcoef(*effect)[0, 1],
                "E-distance": compute("energy", {"predicted_pcs": pcs[name], "real_pcs": pcs["real"]}),
            }
        )
results = pd.DataFrame(rows)
results.groupby("method", sort=False).mean(numeric_only=True).T.round(3)

# %%
for metric, sign in (("overlap with real (Jaccard)", 1), ("pseudobulk r", 1), ("E-distance", -1)):
    wide = results.pivot(index="pair", columns="method", values=metric)
    gain = sign * (wide["counterflow"] - wide["additive rule"])
    verdict = "ahead of" if gain.mean() > 0 else "behind"
    print(f"{metric}: counterflow is {verdict} the additive rule, better in {(gain > 0).mean():.0%} of {len(gain)} pairs")

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, metric in zip(axes, ("overlap with real (Jaccard)", "pseudobulk r", "E-distance"), strict=True):
    wide = results.pivot(index="pair", columns="method", values=metric)[METHODS]
    ax.plot(range(3), wide.to_numpy().T, color="#cccccc", lw=0.6, zorder=1)
    ax.scatter(np.tile(range(3), len(wide)), wide.to_numpy().ravel(), s=10, color="#777777", lw=0, zorder=2)
    ax.scatter(range(3), wide.mean(), s=70, marker="_", color="#D55E00", linewidths=3, zorder=3)
    ax.set_xticks(range(3), [name.replace(" ", "\n") for name in METHODS])
    ax.set_title(metric, fontsize=10)
    ax.set_xlim(-0.4, 2.4)
plt.show()

# %% [markdown]
# Each line is one pair, the bars are means. The other half is the ceiling: two measurements of the same cells do not agree on all
# genes either.
#
# ## Hand them on
#
# `to_cellxgene` writes cells as the viewer wants them (float32, categories, an embedding), and says what is missing if something
# is. The file is plain h5ad, so any other tool reads it too; `cf.evaluate.to_cell_eval` writes pairs of files for the scorer
# cell-eval2, and `pertpy.tl.Distance` takes the cells as they are.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = cf.to_cellxgene(cells, Path(folder, "cells.h5ad"))
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; cellxgene launch {path.name}")
    print(anndata.read_h5ad(path))
