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
# # Your own network, in the table beside ours
#
# A backbone is any `nn.Module` with `__init__(state_shape, condition_dim)` and `forward(x, t, condition)`. Nothing is registered,
# nothing of counterflow is inherited from. This page writes one in twenty lines, checks that it keeps what every backbone promises,
# and lets it compete.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import counterflow as cf
from counterflow.compare import compare

N_STEPS = int(os.environ.get("OWN_STEPS", 60))  # optimiser steps of every model

# %% [markdown]
# ## Twenty lines
#
# `x` holds states, one row per cell; `t` their flow times between 0 and 1; `condition.pooled` what was done to each as one vector
# (`condition.tokens` and `condition.mask` hold the parts one by one, for networks that attend). The answer is a velocity of the
# shape of `x`. A last layer of zeros is good manners: the flow starts by doing nothing.

# %%
import torch
from torch import nn


class Gated(nn.Module):
    """Residual layers whose units are opened and shut by time and condition."""

    def __init__(self, state_shape, condition_dim, width=128, depth=3):
        super().__init__()
        self.enter = nn.Linear(state_shape[0], width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(condition_dim + 1, 2 * width) for _ in range(depth))
        self.leave = nn.Linear(width, state_shape[0])
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x, t, condition):
        heard = torch.cat([condition.pooled, t[:, None]], dim=1)
        h = self.enter(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            opening, shift = gate(heard).chunk(2, dim=1)
            h = h + opening.sigmoid() * nn.functional.silu(layer(h) + shift)
        return self.leave(h)


# %% [markdown]
# A class will do: `cf.CounterFlow(adata, backbone=Gated)`. To find it again, in a comparison or in a saved model, it needs an
# address, so we put the cell above into a file, as you would put it into a package of yours.

# %%
lab = tempfile.TemporaryDirectory()
Path(lab.name, "mylab.py").write_text(In[-2])
sys.path.insert(0, lab.name)

adata = cf.simulate_screen(n_genes=100, n_perturbations=10, n_pairs=20, cells_per_condition=50, cells_control=300, seed=4).adata
cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
model = cf.CounterFlow(adata, backbone="mylab:Gated", backbone_kwargs={"width": 64})
model.train(max_steps=N_STEPS, progress=False)
print(model)

# %% [markdown]
# ## Does it keep its promises?
#
# The contract is a set of tests that every backbone has to pass: the condition matters, cells of a batch do not see each other,
# weights can be saved, gradients reach all of them, and so on. They come with the source of counterflow: `pytest tests/contract
# --backbone mylab:Gated`.

# %%
CHECKOUT = Path(cf.__file__).parents[2]
PROMISES = CHECKOUT / "tests" / "contract" / "test_backbones.py"


def contract(name):
    """The last lines of what pytest says."""
    if not PROMISES.exists():
        return "the contract comes with the source of counterflow: clone it to run this"
    options = "-q -rf --no-header --tb=no --color=no -p no:cacheprovider".split()
    path = os.pathsep.join([lab.name, str(CHECKOUT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", str(PROMISES), *options, "--backbone", f"mylab:{name}"]
    done = subprocess.run(command, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    failed = [line.split("::")[1].split(" - ")[0] for line in lines if line.startswith("FAILED")]
    return "\n".join([*failed, lines[-1].split(" in ")[0]])


print(contract("Gated"))

# %% [markdown]
# And here is a network that would train well and be wrong: batch normalisation lets every cell see who else is in the batch, so a
# prediction would depend on its company.

# %%
with Path(lab.name, "mylab.py").open("a") as file:
    file.write(
        """

class Gossip(Gated):
    def __init__(self, state_shape, condition_dim):
        super().__init__(state_shape, condition_dim)
        self.norm = nn.BatchNorm1d(state_shape[0], track_running_stats=False)

    def forward(self, x, t, condition):
        return super().forward(self.norm(x), t, condition)
"""
    )
print(contract("Gossip"))

# %% [markdown]
# ## In the table
#
# Same split, same number of steps, about the same number of parameters (`budget_parameters` sets the `width` of every network that
# takes one), and the rules that cost nothing.

# %%
models = ["mylab:Gated/pca", "mlp/pca"]
with tempfile.TemporaryDirectory() as folder:
    table = compare(
        adata, models, split="unseen_combination", budget_steps=N_STEPS, budget_parameters=60_000, n_halvings=2,
        metrics=("pearson_delta", "mse", "energy"), out=folder, progress=False,
    )  # fmt: skip
summary = table.summary().pivot(index="method", columns="metric", values="value")[list(table.metrics)]
costs = table.costs.set_index("method")[["backbone_parameters", "train_cpu_s"]]
summary.loc[[*models, *table.baselines, "split_half"]].join(costs).round(3)

# %%
ax = cf.pl.scores(table, "energy")

# %%
yours, ours = (table.per_condition("energy")[name] for name in models)
print(f"energy: yours is better than ours in {(yours < ours).mean():.0%} of {len(yours)} held-out pairs")
for name in models:
    found = table.paired(name, "energy")
    said = "better" if found["gain"] > 0 else "worse"
    print(f"{name}: {said} than the best rule ({found['baseline']}) by {abs(found['gain']):.3f}, p = {found['p']:.2f}")

# %% [markdown]
# Is it surprising that two different networks score alike? By default the mean of a prediction is measured (`anchor="additive"`)
# and the network is trusted as far as it was right on left-out conditions, so a network has to earn its place. With `anchor="none"`
# it does all the work, and differences show.
#
# ## Saved and loaded
#
# A saved model names its backbone. Loading it would run code of that package, so you are asked first.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/model")
    try:
        cf.CounterFlow.load(f"{folder}/model")
    except cf.CounterflowError as error:
        print(f"{type(error).__name__}: {error}")
    print(cf.CounterFlow.load(f"{folder}/model", trust_packages=["mylab"]))

# %%
lab.cleanup()
