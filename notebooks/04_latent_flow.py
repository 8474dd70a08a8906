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
# # A flow in the latent space of scvi-tools
#
# The flow moves *states*. By default a state is 50 principal components; it can also be the latent of an scVI autoencoder, made by
# scvi-tools. `space="latent"` trains one; or you hand in the one that you have trained, and know, already. What does the decoder do
# then, and is it worth the time?

# %%
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scvi

import counterflow as cf
from counterflow.data.split_file import Keys
from counterflow.evaluate.evaluate import evaluate

EPOCHS = int(os.environ.get("SCVI_EPOCHS", 60))  # of the autoencoder
N_STEPS = int(os.environ.get("LATENT_STEPS", 100))  # optimiser steps of the flows; the default is 200
scvi.settings.seed = 0

# %%
screen = cf.simulate_screen(n_genes=150, n_perturbations=12, n_pairs=24, seed=5)
adata = screen.adata
keys = Keys(perturbation_key="perturbation", control="control")
adata.obs["split"] = cf.build_split("unseen_combination", adata.obs, keys, seed=0).labels(adata.obs)
cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")

# %% [markdown]
# ## Your own SCVI
#
# Train it on the training cells alone: an autoencoder that has seen the held-out cells is a leak (`model.audit()` would find it,
# because the names of its cells are handed over with it). The likelihood is negative binomial, so that counts can be decoded; no
# batch key, since the control cell's own batch is to stay.

# %%
begun = time.process_time()
training = adata[adata.obs["split"] == "train"].copy()
scvi.model.SCVI.setup_anndata(training)
vae = scvi.model.SCVI(training, n_latent=16, gene_likelihood="nb")
vae.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False)
seconds = {"latent": time.process_time() - begun}

# %% [markdown]
# It goes in as `space=`. Everything else stays as it is; the model carries the autoencoder with it and is saved without pickles.
# One that was saved by scvi-tools is read by `counterflow.spaces.latent.load_scvi(path, adata, trust=True)`; it is a pickle, so you
# are asked whether you trust it.

# %%
models = {}
for name, space in {"latent": vae, "pca": "pca"}.items():
    begun = time.process_time()
    models[name] = cf.CounterFlow(adata, space=space)
    models[name].train(max_steps=N_STEPS, progress=False)
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - begun
    print(models[name], models[name].audit(), sep="\n")

# %% [markdown]
# ## What the decoder does
#
# The decoder says what counts to *expect* at a state. Drawing cells from that (`decoder="sample"`) makes them anew, and loses
# whatever the latent does not know of them. Given control cells are not decoded from scratch, therefore: their own counts are
# thinned where the expectation of a gene falls, and added to where it rises (`transport`); and by default the mean of every gene is
# set to the measured rule's (`calibrated`). Here are all three, for the same states:

# %%
pair = sorted(
    adata.obs.loc[(adata.obs["split"] == "test") & (adata.obs["perturbation"] != "control"), "perturbation"].astype(str).unique()
)[0]
measured = adata.copy()
sc.pp.normalize_total(measured, target_sum=1e4)
sc.pp.log1p(measured)
real = measured[measured.obs["perturbation"] == pair]
decoders = {name: models["latent"].predict(conditions=pair, n_cells=300, decoder=name) for name in ("calibrated", "transport", "sample")}


def gene_facts(cells):
    """Mean and spread of every gene."""
    dense = np.asarray(cells.X.todense())
    return dense.mean(0), dense.std(0)


fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for ax, which, title in zip(axes, (0, 1), ("mean of each gene", "spread (standard deviation) of each gene"), strict=True):
    for (name, cells), colour, marker in zip(decoders.items(), ("#D55E00", "#0072B2", "#CC79A7"), "^os", strict=True):
        ax.scatter(gene_facts(real)[which], gene_facts(cells)[which], s=12, color=colour, marker=marker, alpha=0.6, lw=0, label=name)
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    ax.set(title=title, xlabel="real cells", ylabel="predicted cells")
axes[0].legend(frameon=False, markerscale=1.6)
plt.show()

# %%
rows = {}
for name, cells in decoders.items():
    errors = [np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(gene_facts(cells), gene_facts(real), strict=True)]
    rows[name] = {"error of means": errors[0], "error of spreads": errors[1], "empty values": 1 - cells.X.nnz / np.prod(cells.shape)}
rows["real cells"] = {"error of means": 0.0, "error of spreads": 0.0, "empty values": 1 - real.X.nnz / np.prod(real.shape)}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# ## Latent or pca?
#
# On all held-out pairs, with the rules, in the same table.

# %%
table = evaluate(
    models,
    adata,
    baselines=("control", "mean", "additive", "additive+ct", "ridge+ct"),
    metrics=("pearson_delta", "mse", "energy"),
    n_halvings=2,
)
summary = table.summary().pivot(index="method", columns="metric", values="value")[["pearson_delta", "mse", "energy"]]
summary["processor seconds"] = pd.Series(seconds)
summary.loc[[*models, *table.baselines, "split_half"]].round(3)

# %%
better = {"pearson_delta": max, "mse": min, "energy": min}
for metric, best in better.items():
    winner = best(models, key=lambda name: summary.loc[name, metric])
    gain = table.paired(winner, metric)
    said = "better" if gain["gain"] > 0 else "worse"
    print(f"{metric}: {winner} is the better space; {said} than the best rule ({gain['baseline']}), p = {gain['p']:.2f}")
print(f"the latent takes {seconds['latent'] / seconds['pca']:.1f} times the processor time of pca")

# %% [markdown]
# When is which one better? An autoencoder needs cells: with thousands, as here, principal components know as much, cost nothing,
# and have no training of their own to get wrong. With hundreds of thousands of cells, strong batch effects, or an atlas whose SCVI
# is there already, hand that in.
