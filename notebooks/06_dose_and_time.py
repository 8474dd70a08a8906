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
# # Dose and time: what would be seen at a time that was not measured?
#
# A screen over time has a handful of time points, at irregular intervals. The `dynamics` backbone reads, for each perturbation, how the
# population moved so far, with a state space model whose step is the measured interval; any time between or beyond is read off the same
# formula. In a screen without times it does the same along doses.
#
# The screen is simulated, so the truth is known; everything runs offline in about a minute. With the environment variable
# `COUNTERFLOW_DATA` the last part shows a real time course.

# %%
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import counterflow as cf

warnings.simplefilter("ignore")  # small groups of cells, said once per fit
N_STEPS = int(os.environ.get("DYNAMICS_STEPS", 300))

# %% [markdown]
# ## 1. A time course with one time held out
#
# Every perturbation is measured at 1, 2, 8 and 16 hours. 4 hours is held out. The effect of each grows at a speed of its own.

# %%
screen = cf.simulate_screen(
    n_genes=120, n_perturbations=8, n_pairs=0, cells_per_condition=60, cells_control=300, n_cell_types=1, n_batches=1,
    times=(1.0, 2.0, 4.0, 8.0, 16.0), seed=6,
)  # fmt: skip
adata = screen.adata
adata.obs["split"] = np.where(adata.obs["time"] == 4.0, "test", "train")
cf.CounterFlow.setup_anndata(
    adata, perturbation_key="perturbation", control="control", time_key="time", library_size_key="n_counts", split_key="split"
)
pd.crosstab(adata.obs["time"], adata.obs["split"])

# %% [markdown]
# Two models on the same cells: the default, whose means come from the measured effects (a straight line from each measured time to the
# next), and `dynamics`. Beside them the rule itself.

# %%
from counterflow.evaluate.baselines import Additive

models = {"dynamics": cf.CounterFlow(adata.copy(), backbone="dynamics"), "mlp (default)": cf.CounterFlow(adata.copy())}
for model in models.values():
    model.train(max_steps=N_STEPS, progress=False)
rule = Additive()
rule.train(adata)
methods = {**models, "straight lines": rule}

controls = adata[adata.obs["perturbation"] == "control"][:150].copy()
unperturbed = screen.true_mean("control", cells=controls.obs_names)


def predicted(method, perturbation, time):
    """Mean log expression of the control cells under a perturbation, at a time."""
    cells = method.predict(controls, pd.DataFrame({"perturbation": [perturbation], "time": [time]}))
    return np.asarray(cells.X.mean(0)).ravel()


def true(perturbation, time):
    return screen.true_mean(perturbation, cells=controls.obs_names, time=time)


errors = {}
for name, method in methods.items():
    wrong = sum(((predicted(method, p, 4.0) - true(p, 4.0)) ** 2).sum() for p in screen.conditions)
    errors[name] = wrong / sum(((unperturbed - true(p, 4.0)) ** 2).sum() for p in screen.conditions)
for name, value in errors.items():
    print(f"{name:15} squared error at the held-out 4 h, relative to 'no change': {value:.3f}")
print("best:", min(errors, key=errors.get))

# %% [markdown]
# ## 2. Look at one gene over time
#
# The gene that changes most under one perturbation, at times from 0 to 24 hours: beyond 16 hours nothing was measured.

# %%
perturbation = max(screen.conditions, key=lambda p: ((true(p, 16.0) - unperturbed) ** 2).sum())
gene = int(np.abs(true(perturbation, 16.0) - unperturbed).argmax())
times = np.array([0.5, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24])
expression = np.log1p(1e4 * np.asarray(adata.X.todense()) / adata.obs["n_counts"].to_numpy()[:, None])
measured = adata.obs["perturbation"] == perturbation

fig, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
dense = np.linspace(0.05, 24, 60)
ax.plot(dense, [true(perturbation, t)[gene] for t in dense], color="0.6", lw=5, label="truth")
for (name, method), style in zip(methods.items(), ("C0o-", "C1s--", "C2^:"), strict=True):
    ax.plot(times, [predicted(method, perturbation, float(t))[gene] for t in times], style, ms=4, label=name)
for time in (1.0, 2.0, 4.0, 8.0, 16.0):
    seen = time != 4.0
    value = expression[(measured & (adata.obs["time"] == time)).to_numpy(), gene].mean()
    ax.plot(time, value, "k*", ms=11, mfc="k" if seen else "w", label={1.0: "measured", 4.0: "measured, held out"}.get(time))
ax.set(xlabel="hours", ylabel=f"mean log expression of {adata.var_names[gene]}", title=f"{perturbation} over time")
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 3. Doses
#
# Four compounds at five doses; the dose 4 is held out. There are no times here, so courses run along log(1 + dose).

# %%
doses = (1.0, 2.0, 4.0, 8.0, 16.0)
dosed = cf.simulate_screen(
    n_genes=120, n_perturbations=4, n_pairs=0, n_compounds=6, cells_per_condition=60, cells_control=300, n_cell_types=1, n_batches=1,
    doses=doses, seed=6,
)  # fmt: skip
data = dosed.adata
compounds = [name for name in dosed.conditions if name.startswith("C")]
data.obs["split"] = np.where((data.obs["dose"] == 4.0), "test", "train")
cf.CounterFlow.setup_anndata(
    data, perturbation_key="perturbation", control="control", dose_key="dose", library_size_key="n_counts", split_key="split"
)
model = cf.CounterFlow(data, backbone="dynamics")
model.train(max_steps=N_STEPS, progress=False)
start = data[data.obs["perturbation"] == "control"][:150].copy()

fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharey=True, layout="constrained")
for ax, compound in zip(axes, compounds, strict=False):
    asked = pd.DataFrame({"perturbation": compound, "dose": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)})
    truth = np.array([dosed.true_mean(compound, cells=start.obs_names, dose=dose) for dose in asked["dose"]])
    base = dosed.true_mean("control", cells=start.obs_names)
    direction = truth[-1] - base
    direction /= (direction**2).sum()
    cells = model.predict(start, asked)
    means = np.asarray(cells.X.todense()).reshape(len(asked), start.n_obs, -1).mean(1)
    ax.plot(asked["dose"], (truth - base) @ direction, color="0.6", lw=5, label="truth")
    ax.plot(asked["dose"], (means - base) @ direction, "C0o-", ms=4, label="dynamics")
    ax.axvline(4, color="0.8", lw=1, zorder=0)
    ax.set(xscale="log", xlabel="dose", title=compound, xticks=[0.5, 2, 8, 32], xticklabels=["0.5", "2", "8", "32"])
axes[0].set_ylabel("share of the effect at dose 32")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The thin line marks the held-out dose; 0.5 and 32 lie beyond what was measured.
#
# ## 4. A real time course
#
# A549 cells under dexamethasone at 1 and 3 hours (Cao et al. 2018). 1 hour is held out; the measured cells say how well it was guessed.

# %%
from counterflow.evaluate.evaluate import evaluate

file = Path(os.environ.get("COUNTERFLOW_DATA", "")) / "cao2018_a549_dex_timecourse.h5ad"
if "COUNTERFLOW_DATA" in os.environ and file.exists():
    a549 = cf.read_h5ad(file)
    a549.obs["split"] = np.where(a549.obs["time_h"] == 1.0, "test", "train")
    cf.CounterFlow.setup_anndata(a549, perturbation_key="perturbation", control="control", time_key="time_h", split_key="split")
    models = {"dynamics": cf.CounterFlow(a549.copy(), backbone="dynamics"), "mlp": cf.CounterFlow(a549.copy())}
    for model in models.values():
        model.train(max_steps=N_STEPS, progress=False)
    table = evaluate(models, a549, metrics=["pearson_delta", "energy"], baselines=["additive", "interpolate"])
    print(table.rows.pivot_table(index="method", columns="metric", values="value", sort=False)[["pearson_delta", "energy"]].round(3))
else:
    print("set COUNTERFLOW_DATA to the folder with cao2018_a549_dex_timecourse.h5ad to run this part")
