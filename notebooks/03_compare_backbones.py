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
# # Which backbone? A comparison that is fair
#
# Four networks, one split, one budget, and simple rules in the same table, scored on the same held-out cells.
# `counterflow.compare.compare` does all of it; on the command line it is `counterflow compare`. This page runs it on a simulated
# screen (name a file of your own in the environment variable `COUNTERFLOW_SCREEN`, with columns `perturbation` and `control` cells,
# and it runs on that), and then reads the table honestly.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import counterflow as cf
from counterflow.compare import compare

N_STEPS = int(os.environ.get("COMPARE_STEPS", 40))  # optimiser steps of every model
SCREEN = os.environ.get("COUNTERFLOW_SCREEN")

# %%
if SCREEN:
    adata = cf.read_h5ad(SCREEN)
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
else:
    adata = cf.simulate_screen(n_genes=80, n_perturbations=8, n_pairs=20, cells_per_condition=60, cells_control=300, seed=1).adata
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
print(adata)

# %% [markdown]
# ## One call
#
# Half of the pairs of genes are held out. Every network takes the same number of optimiser steps; `budget_seconds` and
# `budget_parameters` would make processor time or size equal. So that this page takes two minutes, networks are tiny and trained
# for a moment.

# %%
models = ["mlp/pca", "dit/pca", "set/pca", "ssm/pca"]
folder = tempfile.TemporaryDirectory()
how = {
    "split": "unseen_combination",
    "budget_steps": N_STEPS,
    "metrics": ("pearson_delta", "mse", "pds_cosine", "energy"),
    "n_halvings": 2,
    "model_options": {"backbone_kwargs": {"width": 32, "depth": 2, "n_heads": 2}, "space_kwargs": {"n_components": 16}},
    "train_options": {"batch_size": 128},
    "out": folder.name,
    "progress": False,
}
table = compare(adata, models, **how)
print(sorted(path.name for path in Path(folder.name).iterdir()))

# %% [markdown]
# `report.html` is the whole of it in one file. Here is the table. *S* puts every metric on one scale: 0 is one generic response for
# all perturbations (`mean`), 1 is repeating the experiment. `control` predicts no change. The rules (`additive`, `ridge`, ...) take
# no time at all.

# %%
metrics = table.metrics
summary = table.summary()
S = summary.pivot(index="method", columns="metric", values="S").loc[list(dict.fromkeys(summary["method"])), metrics]
S.round(2)

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 4), sharey=True, layout="constrained")
for ax, metric in zip(axes, ("pearson_delta", "pds_cosine", "energy"), strict=True):
    cf.pl.scores(table, metric, ax=ax)
for ax in axes[::2]:
    ax.set_xlabel("")

# %% [markdown]
# ## Is the model better than the best rule?
#
# Not "is it better on average than a weak rule", but: condition by condition, against the rule that did best on *this* metric
# (chosen afterwards, so the rule has an advantage). Points above the diagonal are won; for `energy`, where less is better, points
# below.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained")
for ax, metric in zip(axes, ("pearson_delta", "energy"), strict=True):
    cf.pl.conditions(table, metric, model=models[0], ax=ax)
    ax.set_title(f"{metric}: {ax.get_title()}", fontsize=9)

# %% [markdown]
# ## More data, or another network?
#
# Everything finished is kept in the folder `out`, so asking again costs only what is new: here one network and the rules, trained
# on shares of the training conditions.

# %%
curve = compare(adata, models[:1], learning_curve=(0.25, 0.5), **how)
ax = cf.pl.learning_curve(curve, "pearson_delta")

# %% [markdown]
# ## The honest reading
#
# Computed, not asserted. For each metric: the best rule, what the best network gains on it (positive is better), in how many
# conditions it wins, and how much lies between the best and the worst network. Then the verdict of the report on each network, in
# words.

# %%
rows = []
for metric in table.metrics:
    found = pd.DataFrame({name: table.paired(name, metric) for name in models}).T
    best = found["gain"].astype(float).idxmax()
    rows.append(
        {
            "metric": metric,
            "best rule": found.loc[best, "baseline"],
            "best network": best,
            "gain": found.loc[best, "gain"],
            "won": f"{found.loc[best, 'won']:.0%} of {found.loc[best, 'n']}",
            "p": found.loc[best, "p"],
            "between networks": np.ptp(found["gain"].astype(float)),
        }
    )
pd.DataFrame(rows).set_index("metric").round(4)

# %%
for name in models:
    print(f"{name}: {table.verdict(name)}\n")

# %%
table.costs[["method", "steps", "train_cpu_s", "parameters", "peak_memory_mb"]]

# %% [markdown]
# How to read such a table:
#
# - By default all models share the measured rule for the mean, and the network learns what the rule leaves. So networks lie close
#   to each other; where they do, take the cheapest.
# - A gain counts where it is larger than what lies between networks, and p is small. With a handful of held-out pairs hardly
#   anything is certain.
# - One seed and a short budget, as here, are for a first look. For a claim: `seeds=3`, a longer budget, and a screen of your own.

# %%
folder.cleanup()
