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
# # Quickstart: counterfactual cells in five calls
#
# A perturb-seq screen measures what happens to *populations* of cells. counterflow fits a conditional rectified flow to it and
# answers a question about *these* control cells: how would they look under a condition, measured or not?
#
# This notebook runs offline in less than two minutes on a laptop, on a simulated screen whose truth is known. For your own
# data, replace the next cell by `adata = cf.read_h5ad("your_file.h5ad")` and the column names by yours.

# %%
import os

import numpy as np
import scanpy as sc

import counterflow as cf
from counterflow.data.split_file import Keys

N_STEPS = int(os.environ.get("QUICKSTART_STEPS", 200))  # optimiser steps: the default

# %%
screen = cf.simulate_screen(seed=0)
adata = screen.adata
print(adata)

# %% [markdown]
# ## 1. Hold something out
#
# Half of the measured pairs of genes become the test set; every single gene stays in training. A split is a small file that
# every method can read, so that all are compared on the same held-out pairs.

# %%
keys = Keys(perturbation_key="perturbation", control="control")
split = cf.build_split("unseen_combination", adata.obs, keys, seed=0)
adata.obs["split"] = split.labels(adata.obs)
held_out = sorted(pair for pair, where in split.assignment.items() if where == "test")
adata.obs["split"].value_counts()

# %% [markdown]
# ## 2. Say what the columns are, and fit
#
# `setup_anndata` checks the data and stores the declaration; it changes nothing else. `match_keys` says which controls belong
# with which perturbed cells: those of the same cell type. The defaults are an MLP on principal
# components that starts from the control cells.

# %%
cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
model = cf.CounterFlow(adata)
model.train(max_steps=N_STEPS, progress=False)
print(model)

# %% [markdown]
# ## 3. Predict
#
# The control cells of the training set, as they would look under a pair that no one showed to the model. The answer is an
# AnnData: `X` is log1p of counts per 10,000, `layers["counts"]` holds integer counts, and every row says which control cell it
# comes from and how far training carries the condition (`components-seen`: both genes were measured, their combination was not).

# %%
pair = held_out[0]
cells = model.predict(conditions=pair)
cells.obs[["perturbation", "source_cell", "support"]].head()

# %% [markdown]
# ## 4. Which genes change, and how sure is that?
#
# Effects on genes, with intervals. Their width was learnt on measured effects that were left out and predicted from the others, so that a
# 90 % interval should hold 90 % of what an experiment would measure. Beside it stands what the best simple rule says.

# %%
genes = model.predict_effect(pair, cells=float("inf"))  # of the population; without `cells`, as the screen would measure it
genes.reindex(genes["effect"].abs().sort_values(ascending=False).index).head(8)

# %% [markdown]
# Here the truth is known. Do the intervals hold it?

# %%
inside = []
for kind, of_kind in genes.groupby("cell_type", observed=True):
    chosen = adata.obs_names[(adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == kind)]
    truth = screen.true_mean(pair, cells=chosen) - screen.true_mean("control", cells=chosen)
    inside.append(((of_kind["lo"] <= truth) & (truth <= of_kind["hi"])).mean())
print(f"true effects inside the 90 % intervals: {np.mean(inside):.0%}")

# %% [markdown]
# ## 5. Look
#
# Beside the cells that were really measured under this pair. Nothing here was seen in training but the control cells.

# %%
measured = adata.copy()
sc.pp.normalize_total(measured, target_sum=1e4)
sc.pp.log1p(measured)
control = measured[measured.obs["perturbation"] == "control"]
real = measured[measured.obs["perturbation"] == pair]

ax = cf.pl.embedding(control, real, cells, title=pair)

# %%
ax = cf.pl.top_genes(control, real, cells, title=pair)

# %% [markdown]
# ## 6. Compare with the truth, and with rules that cost nothing
#
# The simulator knows the exact mean that these control cells would have had. The *additive* rule adds the effects of the two
# genes as they were measured alone; it is hard to beat, and belongs beside every model.

# %%
from counterflow.evaluate.baselines import Additive

additive = Additive()
additive.train(adata)
training_controls = adata[(adata.obs["perturbation"] == "control") & (adata.obs["split"] == "train")]


def mean(expression):
    return np.asarray(expression.X.mean(0)).ravel()


before, after = (screen.true_mean(condition, cells=training_controls.obs_names) for condition in ("control", pair))
observed = mean(measured[training_controls.obs_names])
effects = {"counterflow": mean(cells) - observed, "additive": mean(additive.predict(training_controls, pair)) - observed}
ax = cf.pl.effect(after - before, effects, genes=list(adata.var_names), title=pair)

# %%
errors = {"counterflow": [], "additive": []}
for pair in held_out[:8]:
    truth = screen.true_mean(pair, cells=training_controls.obs_names)
    errors["counterflow"].append(np.sqrt(np.mean((mean(model.predict(conditions=pair)) - truth) ** 2)))
    errors["additive"].append(np.sqrt(np.mean((mean(additive.predict(training_controls, pair)) - truth) ** 2)))
for name, values in errors.items():
    print(f"{name:12} error to the true mean over {len(values)} held-out pairs: {np.mean(values):.3f}")
ahead = np.mean(errors["counterflow"]) < np.mean(errors["additive"])
print(f"the model is {'ahead of' if ahead else 'behind'} the rule")

# %% [markdown]
# ## 7. Keep it
#
# A saved model is a directory of safetensors and JSON. It needs no data to be loaded: a few reference control cells are kept
# inside, from which `generate` starts.

# %%
import tempfile

with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/model")
    loaded = cf.CounterFlow.load(f"{folder}/model")
    new = loaded.generate(held_out[0], n_cells=100, seed=1)
print(new)
