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
# # One image transformer, two objectives
#
# The network behind counterflow's gene models is also the diffusion transformer of images (DiT): the same trunk, with patches in
# place of genes and a class label in place of a perturbation. Images have one great advantage over cells: one can look at
# them. Here a small one learns the handwritten digits that come with scikit-learn, once as a rectified flow and once as a diffusion
# model, on one processor core, in less than two minutes. `benchmarks/image_digits.py` trains longer and measures; its table is in
# `docs/image.md`. With as little training as here, the diffusion is not done yet.

# %%
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # of a progress bar that is not shown

import matplotlib.pyplot as plt
import torch

from counterflow.backbones.image_dit import ImageDiT
from counterflow.data.images import ImageSteps, digits, disjoint_parts
from counterflow.diffusion.ddim import ddim
from counterflow.diffusion.module import DiffusionModule
from counterflow.diffusion.respacing import respace
from counterflow.flow.solvers import euler
from counterflow.module import FlowModule
from counterflow.nn.labels import class_ids
from counterflow.training import fit

N_STEPS = int(os.environ.get("IMAGE_STEPS", 1500))  # optimiser steps per model
torch.set_num_threads(1)

# %%
training, others = disjoint_parts(digits(), [900], seed=0)


def show(strips):
    """One row of images per title."""
    fig, axes = plt.subplots(len(strips), 1, figsize=(8, 0.8 * len(strips)), squeeze=False, layout="constrained")
    for ax, (title, pixels) in zip(axes[:, 0], strips.items(), strict=True):
        ax.imshow(pixels[:, 0].permute(1, 0, 2).flatten(1), cmap="gray", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(title, rotation=0, ha="right", va="center")
    plt.show()


show({"real digits": training.pixels[training.labels.argsort()[::45]]})

# %% [markdown]
# ## The network
#
# `ImageDiT` is a label table and a backbone. Under `objective="flow"` the backbone answers with a velocity, under `"ddpm"` with the
# noise and its variance. Everything else is the same.

# %%
ids = class_ids(training.labels)


def train(objective):
    """The same network, data, optimiser and number of steps."""
    torch.manual_seed(0)
    dit = ImageDiT((1, 8, 8), 10, width=64, depth=3, n_heads=4, patch=2, objective=objective)
    if objective == "flow":
        model = FlowModule(dit.backbone, dit.labels, (1, 8, 8), source="noise", coupling="independent", time="logit_normal")
    else:
        model = DiffusionModule(dit.backbone, dit.labels)
    steps = ImageSteps(training.pixels, ids, batch_size=32, seed=0, stop=N_STEPS)
    fit(model, steps, None, lr=4e-3, weight_decay=1e-2, seed=0, progress=False, accelerator="cpu")
    return model


flow = train("flow")
diffusion = train("ddpm")

# %% [markdown]
# ## From noise to digits
#
# The flow follows its velocity with Euler steps from t = 0 (noise) to t = 1 (data). The diffusion goes back through some of its 1,000 times
# with DDIM. Both start from the same noise and ask the network once per step and image. A straight path
# can be walked in few steps.

# %%
wanted = torch.arange(20) % 10
noise = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def sample_flow(labels, noise, steps, guidance=1.0):
    velocity = flow.velocity(class_ids(labels), guidance=guidance, guidance_kind="classifier_free")
    return euler(velocity, noise, torch.linspace(0, 1, steps + 1))


@torch.no_grad()
def sample_diffusion(labels, noise, steps, guidance=1.0):
    denoiser = diffusion.denoiser(class_ids(labels), guidance=guidance)
    return ddim(denoiser, noise, respace(diffusion.schedule, steps), clip=1.0)


show({f"flow, {steps} steps": sample_flow(wanted, noise, steps) for steps in (1, 2, 5, 20)})
show({f"diffusion, {steps} steps": sample_diffusion(wanted, noise, steps) for steps in (2, 5, 20, 100)})

# %% [markdown]
# ## Guidance
#
# Some labels were withheld in training, so the network also knows digits in general. Guidance goes further in the direction in which
# the label moves the velocity: more typical digits, less variety.

# %%
show({f"guidance {w:g}": sample_flow(wanted, noise, 20, w) for w in (0.0, 1.0, 2.0, 4.0)})

# %% [markdown]
# ## Is it the digit that was asked for?
#
# A classifier that was trained on other real digits says how often.

# %%
from sklearn.svm import SVC

judge = SVC().fit(others.pixels.flatten(1), others.labels)
asked = torch.arange(200) % 10
start = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
print(f"real digits that the judge has not seen: {judge.score(training.pixels.flatten(1), training.labels):.3f}")
for name, sample in (("flow", sample_flow), ("diffusion", sample_diffusion)):
    for guidance in (1.0, 2.0):
        pixels = sample(asked, start, 20, guidance)
        print(f"{name:9}, 20 steps, guidance {guidance:g}: {judge.score(pixels.flatten(1), asked):.3f}")
