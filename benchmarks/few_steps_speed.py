"""What one jump of a mean velocity costs, beside twenty Euler steps and our default of five midpoint steps.

    python benchmarks/few_steps_speed.py [--rounds 15] [--out benchmarks/results/few_steps_speed.json]

States of 2,048 simulated control cells under one pair of genes, untrained networks of the default size with random weights; the three ways
take turns, processor seconds of one thread. Encoding and decoding are left out: they are the same for all.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import counterflow as cf
from counterflow.data.simulate import simulate_screen
from counterflow.prediction import solve
from counterflow.processor import at_work
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

CELLS = 2048
WAYS = {
    "euler, 20 steps": ("flow", Sampling("euler", 20)),
    "midpoint, 5 steps": ("flow", Sampling("midpoint", 5)),
    "one jump": ("meanflow", Sampling("jump", 1)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "few_steps_speed.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    screen = simulate_screen(seed=0)
    cf.CounterFlow.setup_anndata(screen.adata, perturbation_key="perturbation", control="control")
    pair = next(name for name in screen.conditions if "+" in name)
    models = {name: cf.CounterFlow(screen.adata, objective=name) for name in ("flow", "meanflow")}
    generator = torch.Generator().manual_seed(0)
    for model in models.values():
        for weight in model.module.parameters():
            weight.data.normal_(0, 0.05, generator=generator)
    before = torch.randn(CELLS, *models["flow"].space.state_shape, generator=generator)
    spec = ConditionSpec(tuple(sorted(pair.split("+"))), (1.0, 1.0))
    took = {name: [] for name in WAYS}
    for _ in range(options.rounds + 2):
        for name, (which, how) in WAYS.items():
            model = models[which]
            ids, factual = (model.vocabulary.ids([one] * CELLS, {}) for one in (spec, ConditionSpec()))
            with at_work(model.module):
                started = time.process_time()
                solve(model.module, before, None, ids, factual, how)
                took[name].append(time.process_time() - started)
    figures = {name: [round(1e3 * float(q), 2) for q in np.quantile(values[2:], [0.5, 0, 1])] for name, values in took.items()}
    ratios = np.array(took["euler, 20 steps"][2:]) / np.array(took["one jump"][2:])
    about = {"torch": torch.__version__, "machine": platform.machine(), "cells": CELLS, "milliseconds (median, least, most)": figures}
    about["euler 20 : one jump (median, least, most)"] = [round(float(q), 1) for q in np.quantile(ratios, [0.5, 0, 1])]
    print(json.dumps(about, indent=1))
    options.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
