"""How good one, two, five and ten evaluations are: a flow, the same flow straightened (reflow), and mean velocities (meanflow).

    python benchmarks/few_steps.py --data FOLDER [--steps 300]

Validation conditions, fits and columns as in `benchmarks/solvers.py`; every network has `--steps` optimiser steps, reflow as many again;
seconds are those of all of its training. Beside them the controls as they are (1 by definition), and the additive rule, whose cells are
controls moved by it. Writes `benchmarks/results/few_steps.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from held_out import train_the_flow, units
from search_backbones import BATCH, N_GENES, tasks

import counterflow as cf
from counterflow.prediction import solve
from counterflow.processor import at_work
from counterflow.sampling import Sampling

RESULTS = Path(__file__).parent / "results"
WAYS = {
    1: Sampling("euler", 1),
    2: Sampling("midpoint", 1),
    4: Sampling("midpoint", 2),
    10: Sampling("midpoint", 5),
    20: Sampling("midpoint", 10),
}
JUMPS = {n: Sampling("jump", n) for n in (1, 2, 4)}
NETWORKS = {"flow": {}, "reflow": {}, "meanflow": {"objective": "meanflow"}}


def fit(adata, source: str, network: str, steps: int) -> tuple[cf.CounterFlow, float]:
    """A flow and its rule, without the fits that learn trust."""
    coupling = {"coupling": "independent"} if source == "noise" else {}
    model = cf.CounterFlow(adata, source=source, n_top_genes=N_GENES, **coupling, **NETWORKS[network])
    begun = time.process_time()
    train_the_flow(model, max_steps=steps, reflow_steps=steps if network == "reflow" else 0, batch_size=BATCH)
    return model, time.process_time() - begun


def judged(model: cf.CounterFlow) -> dict[str, dict[str, float]]:
    """Of each way to solve: mean over the held-out conditions and contexts."""
    module = model.module
    found: dict[str, list[tuple[float, ...]]] = {}
    ways = {f"{n} evaluations": how for n, how in WAYS.items()}
    if module.objective == "meanflow":
        ways = {f"{n} jumps": how for n, how in JUMPS.items()} | ways
    for one in units(model):
        start = None if module.source == "control" else one.noise()
        with at_work(module):
            ends = {name: solve(module, one.before, start, one.ids, one.factual, how) for name, how in ways.items()}
        if model.rule is not None:
            ends["additive rule"] = one.before
        for name, after in ends.items():
            found.setdefault(name, []).append(one.scores(after.double().numpy() + one.anchor))
    return {name: dict(zip(("mean", "energy"), map(float, np.mean(values, 0)), strict=True)) for name, values in found.items()}


def write(found: dict[str, dict[str, dict[str, dict[str, float]]]], seconds: dict[str, dict[str, float]], said: str) -> None:
    """JSON, and a table for each screen and source."""
    (RESULTS / "few_steps.json").write_text(json.dumps({"how": said, "fits": found, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    text = ["# Few steps", "", "`benchmarks/few_steps.py` says what this is; 0 is the real cells, 1 the controls as they are. " + said]
    for task, networks in found.items():
        text += ["", f"## {task}", "", "| network | way | mean | energy |", "| --- | --- | ---: | ---: |"]
        rule = next((ways.pop("additive rule") for ways in networks.values() if "additive rule" in ways), None)
        if rule is not None:
            text.append(f"| none | additive rule | {rule['mean']:.3f} | {rule['energy']:.3f} |")
        for network, ways in networks.items():
            ways.pop("additive rule", None)
            label = f"{network} ({seconds[task][network]:.0f} s)"
            text += [f"| {label} | {way} | {values['mean']:.3f} | {values['energy']:.3f} |" for way, values in ways.items()]
    (RESULTS / "few_steps.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each network")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for task, adata in tasks(options.data):
        for source in ("control", "noise"):
            for network in NETWORKS:
                model, took = fit(adata, source, network, options.steps)
                name = f"{task}, from {source}"
                seconds.setdefault(name, {})[network] = took
                found.setdefault(name, {})[network] = judged(model)
                print(name, network, f"{took:.0f} s", {way: round(v["energy"], 3) for way, v in found[name][network].items()}, flush=True)
    said = f"{datetime.date.today().isoformat()}, torch {torch.__version__}, one thread; {options.steps} steps, one seed."
    write(found, seconds, said)


if __name__ == "__main__":
    main()
