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
# # Perturbations that nobody measured
#
# Two kinds of questions a screen leaves open: pairs of genes that were measured alone but never together, and genes that were never
# perturbed at all. They are not equally hard, and a model should say so. This page holds out both, asks, and compares with rules
# that cost nothing, and with the truth, which a simulated screen has.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import counterflow as cf
from counterflow.data.split_file import Keys
from counterflow.evaluate.baselines import BASELINES

N_STEPS = int(os.environ.get("UNSEEN_STEPS", 100))  # optimiser steps; the default is 200

# %%
screen = cf.simulate_screen(seed=3)
keys = Keys(perturbation_key="perturbation", control="control")

# %% [markdown]
# ## What is held out
#
# `unseen_combination` holds out half of the pairs; every gene alone stays in training. `unseen_perturbation` holds out genes: every
# condition that contains one leaves training. A split is a small JSON file that any method can read.

# %%
splits = {name: cf.build_split(name, screen.adata.obs, keys, seed=0) for name in ("unseen_combination", "unseen_perturbation")}
for name, split in splits.items():
    names = sorted(unit for unit, where in split.assignment.items() if where == "test")
    print(f"{name}: {len(names)} conditions held out, such as {', '.join(names[:4])}")


# %%
def fitted(split):
    """A model and rules that have not seen what `split` holds out."""
    adata = screen.adata.copy()
    adata.obs["split"] = split.labels(adata.obs)
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
    model = cf.CounterFlow(adata)
    model.train(max_steps=N_STEPS, progress=False)
    rules = {name: BASELINES[name]() for name in ("control", "mean", "additive", "bilinear")}
    for rule in rules.values():
        rule.train(adata)
    return adata, model, rules


pairs, pair_model, pair_rules = fitted(splits["unseen_combination"])
singles, single_model, single_rules = fitted(splits["unseen_perturbation"])

# %% [markdown]
# ## How far training carries a question
#
# Every predicted cell has a label. `components-seen`: all parts were measured, the combination was not. `features-only`: a part was
# never perturbed, and is known only by what its gene does in control cells (its co-expression). What has neither identity nor
# features is refused: it never becomes a silent control.

# %%
held_out = {
    kind: sorted(unit for unit, where in splits[name].assignment.items() if where == "test" and ("+" in unit) == (kind == "pairs"))
    for kind, name in (("pairs", "unseen_combination"), ("singles", "unseen_perturbation"))
}
pair, single = held_out["pairs"][0], held_out["singles"][0]
for model, condition in ((pair_model, pair), (single_model, single)):
    print(f"{condition}: {', '.join(model.predict(conditions=condition, n_cells=50).obs['support'].unique())}")
try:
    pair_model.predict(conditions="NOT_A_GENE")
except cf.DataError as error:
    print(f"\nDataError: {error}")

# %% [markdown]
# ## Which genes change, and how sure is that?
#
# `predict_effect` gives each gene an interval. Its width was learnt on conditions of the training screen, left out in turn and
# predicted, for each kind of question separately: an unseen gene gets wider intervals than an unseen pair. Here are the ten genes
# with the largest predicted effect, with the true effect beside them.

# %%
controls = screen.adata.obs_names[(screen.adata.obs["perturbation"] == "control") & (screen.adata.obs["cell_type"] == "type0")]


def truth(condition):
    """The exact mean effect in cells of type 0."""
    return screen.true_mean(condition, cells=controls) - screen.true_mean("control", cells=controls)


def intervals(ax, model, condition, n_genes=10):
    table = model.predict_effect(condition, cells=float("inf")).query("cell_type == 'type0'").set_index("gene")
    true = pd.Series(truth(condition), index=screen.adata.var_names)
    top = table.reindex(table["effect"].abs().sort_values().index[-n_genes:])
    y = np.arange(n_genes)
    ax.hlines(y, top["lo"], top["hi"], color="#D55E00", lw=3, alpha=0.45, label="90 % interval")
    ax.scatter(top["effect"], y, marker="^", color="#D55E00", label="predicted")
    ax.scatter(top["baseline_effect"], y, marker="|", color="black", s=80, label="simple rule")
    ax.scatter(true[top.index], y, color="#0072B2", s=22, label="true", zorder=3)
    ax.axvline(0, color="#cccccc", lw=0.8, zorder=0)
    ax.set_yticks(y, list(top.index))
    inside = ((table["lo"] <= true[table.index]) & (true[table.index] <= table["hi"])).mean()
    ax.set(xlabel="effect on mean log1p expression", title=f"{condition} ({table['support'].iloc[0]})\n{inside:.0%} of all genes inside")


fig, axes = plt.subplots(1, 2, figsize=(8.4, 4), layout="constrained")
intervals(axes[0], pair_model, pair)
intervals(axes[1], single_model, single)
fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower center", frameon=False)
plt.show()

# %% [markdown]
# One condition may be lucky or not. Over more of them:

# %%
for model, conditions in ((pair_model, held_out["pairs"][:8]), (single_model, held_out["singles"])):
    table = model.predict_effect(conditions, cells=float("inf"), n_cells=256).query("cell_type == 'type0'")
    inside = []
    for condition, of_one in table.groupby("condition", observed=True):
        true = pd.Series(truth(condition), index=screen.adata.var_names)[of_one["gene"]].to_numpy()
        inside.append(((of_one["lo"] <= true) & (true <= of_one["hi"])).mean())
    width = (table["hi"] - table["lo"]).mean()
    said = "as promised or more" if np.mean(inside) >= 0.9 else "too narrow"
    print(f"{table['support'].iloc[0]}: 90 % intervals hold {np.mean(inside):.0%} of true effects ({said}); mean width {width:.2f}")

# %% [markdown]
# ## Does it beat the rules?
#
# Error to the true mean (root mean square over genes, cells of type 0), mean over the held-out conditions. For pairs the rule is
# *additive*; for unseen genes the best that is known is little better than the mean of all other perturbations.

# %%
here = pairs[controls[np.isin(controls, pairs.obs_names[pairs.obs["split"] == "train"])]]


def mean(cells):
    return np.asarray(cells.X.mean(0)).ravel()


def errors(model, rules, conditions):
    table = pd.DataFrame(index=conditions, columns=["counterflow", *rules], dtype=float)
    for condition in conditions:
        true = screen.true_mean(condition, cells=here.obs_names)
        for name, predictor in {"counterflow": model, **rules}.items():
            predicted = predictor.predict(here, pd.DataFrame({"perturbation": [condition]}))
            table.loc[condition, name] = np.sqrt(np.mean((mean(predicted) - true) ** 2))
    return table


found = {
    "unseen pairs": errors(pair_model, pair_rules, held_out["pairs"]),
    "unseen genes": errors(single_model, single_rules, held_out["singles"]),
}
pd.DataFrame({kind: table.mean() for kind, table in found.items()}).round(3)

# %%
for kind, table in found.items():
    best = table.drop(columns="counterflow").mean().idxmin()
    won = (table["counterflow"] < table[best]).mean()
    gain = 1 - table["counterflow"].mean() / table[best].mean()
    verdict = f"error {abs(gain):.1%} {'lower' if gain > 0 else 'higher'} than that of the best rule ({best})"
    print(f"{kind}: counterflow's {verdict}, better in {won:.0%} of {len(table)}")

# %% [markdown]
# ## Which pairs do more than the sum of their parts?
#
# Of all pairs of some genes, measured or not: the slope of the pair's predicted effect on the sum of its parts' effects. 1 is
# additive, above is synergy, below is buffering. It is a map of where to look next, not a measurement. Beside it stands what the
# truth says.

# %%
genes = sorted({gene for condition in held_out["pairs"] for gene in condition.split("+")})[:6]
fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.8), layout="constrained")
cf.pl.interactions(pair_model, genes, title="predicted", ax=axes[0])


class Truth:
    """What the simulator would answer."""

    setup = pair_model.setup

    def predict_effect(self, names, interval):
        table = [pd.DataFrame({"condition": name, "gene": screen.adata.var_names, "effect": truth(name)}) for name in names]
        return pd.concat(table)


cf.pl.interactions(Truth(), genes, title="true (cells of type 0)", ax=axes[1])
plt.show()

# %%
upper = np.triu_indices(len(genes), 1)
predicted, true = (np.ma.filled(ax.images[0].get_array().astype(float), np.nan)[upper] for ax in axes)
print(f"slopes of {len(true)} pairs: predicted {predicted.mean():.2f} on average, true {true.mean():.2f}")
r = np.corrcoef(predicted, true)[0, 1]
print(f"which pairs: correlation of predicted and true slopes {r:+.2f} (a rule that says the same for all knows nothing of it)")

# %% [markdown]
# Read the last line before you believe a map: that pairs do less than the sum of their parts, on average, is learnt from a few
# dozen pairs; *which* pair is special need not be.
