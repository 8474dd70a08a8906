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
# # Rectified flow on one page
#
# A network learns which way cells move. Here it does so in a plane, where one can look, with the very functions that train the
# models of cells (`flow/path.py`, `flow/coupling.py`, `flow/solvers.py`). Three questions: what is the loss, what does the pairing
# of cells do to their paths, and in how few steps can one walk them?

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import counterflow as cf
from counterflow.data.split_file import Keys
from counterflow.evaluate.metrics import compute
from counterflow.flow.coupling import couple
from counterflow.flow.few_step import intervals, jump, mean_velocity
from counterflow.flow.path import flow_loss, interpolate
from counterflow.flow.solvers import euler, midpoint, trajectory
from counterflow.flow.time import uniform

TOY_STEPS = int(os.environ.get("FLOW_STEPS", 1200))  # optimiser steps of each network in the plane
CELL_STEPS = int(os.environ.get("FLOW_STEPS", 200))  # and of each model of cells: the default
torch.set_num_threads(1)

# %% [markdown]
# ## The data
#
# Control cells sit in two clouds on the left; perturbed cells in two clouds on the right. Both types go to the right, and the upper
# type goes further. We never see the same cell twice, so which cell became which is not in the data.

# %%
GREY, BLUE, ORANGE = "#999999", "#0072B2", "#D55E00"


def draw(n, generator):
    """Some control cells and some perturbed cells, not paired in any way."""
    upper = torch.rand(2, n, 1, generator=generator) < 0.5
    noise = 0.35 * torch.randn(2, n, 2, generator=generator)
    control = torch.where(upper[0], torch.tensor([-2.0, 1.5]), torch.tensor([-2.0, -1.5])) + noise[0]
    perturbed = torch.where(upper[1], torch.tensor([3.0, 1.5]), torch.tensor([1.0, -1.5])) + noise[1]
    return control, perturbed


def pairs(coupling):
    """(n, generator) -> source and target cells, paired by `coupling`."""

    def some(n, generator):
        control, perturbed = draw(n, generator)
        one_group = torch.zeros(n, dtype=torch.long)  # cells of one group may be paired
        return couple(coupling, control, perturbed, one_group, generator), perturbed

    return some


def panel(ax, title):
    ax.set(title=title, xlim=(-3.4, 4.4), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for ax, coupling in zip(axes, ("independent", "ot"), strict=True):
    x0, x1 = pairs(coupling)(128, torch.Generator().manual_seed(0))
    ax.plot(*torch.stack([x0, x1]).permute(2, 0, 1), color="black", lw=0.4, alpha=0.4)
    ax.scatter(*x0.T, s=10, color=GREY, zorder=2)
    ax.scatter(*x1.T, s=10, color=BLUE, zorder=2)
    panel(ax, f"coupling = {coupling!r}")
plt.show()

# %% [markdown]
# Two ways to pair them: at random, or so that the sum of squared distances is least (optimal transport, in each batch). Grey are
# control cells, blue are perturbed ones.
#
# ## The loss
#
# On the straight line of a pair, `x_t = (1 - t) x0 + t x1`, the velocity is `x1 - x0`. The network sees a point of the line and the
# time, not the pair, and is asked for the velocity. That is all. Where lines cross it learns their mean.


# %%
class Network(nn.Module):
    """x, t, r -> velocity at x from t to r; r = t asks for the velocity itself (r is for the last part of this page)."""

    def __init__(self, width=96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x, t, r=None):
        times = (torch.as_tensor(one).expand(len(x)) for one in (t, t if r is None else r))
        return self.layers(torch.cat([x, *(one[:, None] for one in times)], 1))


def loss_of_flow(network, x0, x1, generator):
    t = uniform(len(x1), generator, x1.device)
    x_t, velocity = interpolate(x0, x1, t)
    return flow_loss(network(x_t, t), x_t, t, velocity).mean()


def train(pairs, loss=loss_of_flow, steps=TOY_STEPS, seed=0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network, *pairs(256, generator), generator).backward()
        optimiser.step()
        schedule.step()
    return network.requires_grad_(False)


networks = {"independent": train(pairs("independent")), "ot": train(pairs("ot"))}

# %% [markdown]
# ## What pairing does to paths
#
# From every control cell we follow the velocity from t = 0 to t = 1. Both flows end on the perturbed cells. With random pairs the
# lines cross, the network learns means, and paths bend. With optimal transport lines hardly cross, and paths are nearly straight.
# (Mark the upper type: the data cannot say whether it should go to the upper or to the lower right. The coupling decides; it is an
# assumption.)

# %%
start, real = draw(400, torch.Generator().manual_seed(1))


def show_paths(networks):
    fig, axes = plt.subplots(1, len(networks), figsize=(4 * len(networks), 3.2), layout="constrained")
    for ax, (name, network) in zip(axes, networks.items(), strict=True):
        path = trajectory(midpoint, network, start, torch.linspace(0, 1, 51))
        ax.scatter(*real.T, s=8, color=BLUE, alpha=0.35, lw=0)
        ax.plot(*path[:, :100].permute(2, 0, 1), color="black", lw=0.5, alpha=0.45)
        ax.scatter(*start[:100].T, s=9, color=GREY, zorder=2)
        ax.scatter(*path[-1, :100].T, s=10, marker="^", color=ORANGE, zorder=3)
        length = (path[1:] - path[:-1]).norm(dim=2).sum(0) / (path[-1] - path[0]).norm(dim=1)
        panel(ax, f"{name}: paths {100 * (length.mean() - 1):.1f} % longer\nthan straight lines")
    plt.show()


show_paths(networks)

# %% [markdown]
# ## How many steps?
#
# Euler's method goes along the tangent, one evaluation of the network per step. In one step it is exact on straight lines, and
# wrong on bent ones. Two remedies:
#
# - **Reflow**: let the flow make its own pairs (a start and where it ends), and train a second network on those. They do not cross.
# - **MeanFlow**: train a network on the *mean* velocity from t to r. Then one jump from 0 to 1 is right by definition.


# %%
def made_by(network):
    """Pairs that a flow makes itself."""

    def some(n, generator):
        x0, _ = draw(n, generator)
        return x0, midpoint(network, x0, torch.linspace(0, 1, 11))

    return some


def loss_of_meanflow(network, x0, x1, generator):
    t, r = intervals(uniform(len(x1), generator, x1.device), uniform(len(x1), generator, x1.device), generator)
    x_t, velocity = interpolate(x0, x1, t)
    return flow_loss(network(x_t, t, r), x_t, t, mean_velocity(network, x_t, t, r, velocity)).mean()


networks["reflow of independent"] = train(made_by(networks["independent"]))
mean_network = train(pairs("independent"), loss_of_meanflow)
show_paths({name: networks[name] for name in ("independent", "reflow of independent")})

# %% [markdown]
# The error is the energy distance between where the cells end and 2,000 real ones: about 0 where they cannot be told apart. The
# dotted line is what 400 *real* cells score, so nothing can be expected to lie below it.

# %%
steps = (1, 2, 4, 8, 16, 32)
many, again = (draw(n, torch.Generator().manual_seed(seed))[1].numpy() for n, seed in ((2000, 2), (400, 3)))


def error(cells, real=many):
    return max(compute("energy", {"predicted_pcs": np.asarray(cells), "real_pcs": real}), 1e-4)


lines = {name: [error(euler(network, start, torch.linspace(0, 1, n + 1))) for n in steps] for name, network in networks.items()}
lines["meanflow of independent"] = [error(jump(mean_network, start, torch.linspace(0, 1, n + 1))) for n in steps]

fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
for (name, values), colour, marker in zip(lines.items(), ("#CC79A7", "#009E73", "#D55E00", "#0072B2"), "osD^", strict=True):
    ax.loglog(steps, values, color=colour, marker=marker, label=name)
ax.axhline(error(again), color="black", ls=":", lw=1, label="real cells")
ax.set(xlabel="evaluations of the network", ylabel="energy distance to real cells", xticks=steps, xticklabels=steps)
ax.minorticks_off()
ax.legend(frameon=False, fontsize=8, loc="upper right")
plt.show()

# %%
for name, values in lines.items():
    print(f"{name:24} one evaluation {values[0]:.4f}, thirty-two {values[-1]:.4f}")

# %% [markdown]
# ## The same with cells
#
# Now a simulated screen. To see the flow alone we switch off the rule that models have by default (`anchor="none"`): the network
# learns the whole effect. Twelve held-out pairs of genes are predicted by a plain flow, by the same flow straightened, and by mean
# velocities; the error is the energy distance of predicted and real cells on 20 principal components, relative to *no change*.
# Beside them stand the simplest rule, which adds the effects of the two genes up, and the default model, which has that rule.

# %%
adata = cf.simulate_screen(seed=0).adata
keys = Keys(perturbation_key="perturbation", control="control")
adata.obs["split"] = cf.build_split("unseen_combination", adata.obs, keys, seed=0).labels(adata.obs)
cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
held_out = sorted(adata.obs.loc[adata.obs["split"] == "test", "perturbation"].unique())
held_out = [name for name in held_out if name != "control"][:12]


def fitted(objective="flow", anchor="none", **how):
    model = cf.CounterFlow(adata, anchor=anchor, objective=objective)
    model.train(max_steps=CELL_STEPS, progress=False, **how)
    return model


models = {"flow": fitted(), "reflow": fitted(reflow_steps=CELL_STEPS), "meanflow": fitted("meanflow")}

# %% [markdown]
# The paths of the plain flow, from control cells to where they are predicted under a pair that nobody showed to it; behind them the
# cells that were really measured.

# %%
ax = cf.pl.trajectories(models["flow"], held_out[0], adata[adata.obs["perturbation"] == held_out[0]], title=held_out[0])

# %%
import scanpy as sc
from sklearn.decomposition import PCA

from counterflow.evaluate.baselines import Additive

measured = adata.copy()
sc.pp.normalize_total(measured, target_sum=1e4)
sc.pp.log1p(measured)
pca = PCA(20, random_state=0).fit(measured[adata.obs["split"] == "train"].X.toarray())
states = {name: pca.transform(measured[adata.obs["perturbation"] == name].X.toarray()) for name in ["control", *held_out]}


def relative(predict):
    """Mean over the held-out pairs; 1 is no change."""
    score = 0.0
    for pair in held_out:
        predicted = pca.transform(np.asarray(predict(pair).X.todense()))
        score += error(predicted, states[pair]) / error(states["control"], states[pair]) / len(held_out)
    return score


ways = {"flow": [("euler", 1), ("midpoint", 1), ("midpoint", 2), ("midpoint", 5)], "meanflow": [("jump", 1), ("jump", 2), ("jump", 4)]}
ways["reflow"] = ways["flow"]
curves = {}
for name, model in models.items():
    for solver, n_steps in ways[name]:
        evaluations = n_steps * (2 if solver == "midpoint" else 1)
        value = relative(lambda pair, m=model, s=solver, n=n_steps: m.predict(conditions=pair, solver=s, n_steps=n, n_cells=200))
        curves.setdefault(name, {})[evaluations] = value
additive = Additive()
additive.train(adata)
controls = adata[(adata.obs["perturbation"] == "control") & (adata.obs["split"] == "train")]
rule = relative(lambda pair: additive.predict(controls, pair))
with_rule = fitted(anchor="additive")
default = relative(lambda pair: with_rule.predict(conditions=pair, n_cells=200))

fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
for (name, curve), colour, marker in zip(curves.items(), ("#CC79A7", "#D55E00", "#0072B2"), "oD^", strict=True):
    ax.semilogx(list(curve), list(curve.values()), color=colour, marker=marker, label=name)
ax.axhline(rule, color="black", ls=":", lw=1, label="additive rule")
ax.plot(10, default, "*", color="#009E73", ms=10, label="default model: rule and flow")
ax.set(
    xlabel="evaluations of the network", ylabel="energy distance, relative to no change", xticks=(1, 2, 4, 10), xticklabels=(1, 2, 4, 10)
)
ax.minorticks_off()
ax.legend(frameon=False, fontsize=8)
plt.show()

# %%
print(f"additive rule  {rule:.3f}")
print(f"default model  {default:.3f}; {'better' if default < rule else 'not better'} than the rule")
for name, curve in curves.items():
    verdict = "better" if min(curve.values()) < rule else "not better"
    print(f"{name:14} {', '.join(f'{n}: {v:.3f}' for n, v in curve.items())} (evaluations: error); {verdict} than the rule")

# %% [markdown]
# With pairs from optimal transport paths are nearly straight to begin with, so few steps are enough for the plain flow, too. What
# remains of the error is not the solver's: it is what the network did not learn from so few cells. And the rule, which costs
# nothing, is a strong opponent: this is why models have it by default (`anchor="additive"`) and learn only what it leaves, and why
# every table of counterflow shows it.
