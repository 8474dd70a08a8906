"""How many steps of which solver are enough: error against a tight solution, quality of the predicted cells, and time.

    python benchmarks/solvers.py --data FOLDER [--seconds 10]

Validation conditions only (`benchmarks/search_backbones.py` says which), one fit each of the flow alone, states in principal components,
the mlp. ``error``: root mean square distance to the solution of dopri5 at rtol 1e-5, relative to what the flow moves. ``mean``: squared
error of the predicted mean state, relative to that of no change. ``energy``: energy distance of predicted and real cells, relative to that
of the controls; its noise from the choice of cells is about .01. Writes `benchmarks/results/solvers.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Iterator
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
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
STEPS = {"euler": (1, 2, 4, 8, 10, 20, 50, 100), "midpoint": (1, 2, 5, 10, 20), "heun": (1, 2, 5, 10), "rk4": (1, 2, 5)}


def fits(folder: Path, seconds: float) -> Iterator[tuple[str, cf.CounterFlow]]:
    """A fit for each screen and source."""
    for task, adata in tasks(folder):
        for source in ("control", "noise"):
            options = {} if source == "control" else {"coupling": "independent"}
            model = cf.CounterFlow(adata, source=source, n_top_genes=N_GENES, **options)
            train_the_flow(model, max_seconds=seconds, batch_size=BATCH)
            yield f"{task}, from {source}", model


def ways() -> Iterator[Sampling]:
    for precision in ("32-true", "bf16-mixed"):
        for solver, numbers in STEPS.items():
            yield from (Sampling(solver, n, precision=precision) for n in numbers if precision == "32-true" or n == 20)


def judged(model: cf.CounterFlow) -> dict[str, dict[str, float]]:
    """Of each way to solve: mean over the held-out conditions and contexts."""
    module = model.module
    found: dict[str, list[tuple[float, ...]]] = {}
    for one in units(model):
        start = None if module.source == "control" else one.noise()

        def end(how: Sampling, one=one, start=start) -> torch.Tensor:
            with at_work(module):
                return solve(module, one.before, start, one.ids, one.factual, how)

        exact = end(Sampling("dopri5", 1))
        moved = (exact - (one.before if start is None else start)).square().mean().sqrt()
        for how in [*ways(), Sampling("dopri5", 1)]:
            begun = time.process_time()
            after = end(how)
            seconds = time.process_time() - begun
            error = float((after - exact).square().mean().sqrt() / moved)
            found.setdefault(name(how), []).append((error, *one.scores(after.double().numpy() + one.anchor), 1e6 * seconds / len(after)))
    keys = ("error", "mean", "energy", "us_per_cell")
    return {way: dict(zip(keys, map(float, np.mean(values, 0)), strict=True)) for way, values in found.items()}


def name(how: Sampling) -> str:
    if how.solver == "dopri5":
        return "dopri5 (rtol 1e-5)"
    return f"{how.solver} {how.n_steps}" + (", bfloat16" if how.precision != "32-true" else "")


def write(found: dict[str, dict[str, dict[str, float]]], said: str) -> None:
    (RESULTS / "solvers.json").write_text(json.dumps({"how": said, "fits": found}, indent=1) + "\n", encoding="utf-8")
    text = ["# Solvers", "", "`benchmarks/solvers.py` says what the columns are. " + said]
    for fit, ways_ in found.items():
        text += [
            "",
            f"## {fit}",
            "",
            "| solver, steps | evaluations | error | mean | energy | us per cell |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for way, values in ways_.items():
            kind, _, rest = way.partition(" ")
            n = str(EVALUATIONS[kind] * int(rest.split(",")[0])) if kind in EVALUATIONS else ""
            text.append(
                f"| {way} | {n} | {values['error']:.4f} | {values['mean']:.3f} | {values['energy']:.3f} | {values['us_per_cell']:.0f} |"
            )
    (RESULTS / "solvers.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def draw(found: dict[str, dict[str, dict[str, float]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3.2 * len(found), 5.2), sharex=True, squeeze=False)
    for column, (fit, ways_) in zip(axes.T, found.items(), strict=True):
        for solver, numbers in STEPS.items():
            n = [EVALUATIONS[solver] * steps for steps in numbers]
            for axis, key in zip(column, ("error", "energy"), strict=True):
                axis.plot(n, [ways_[f"{solver} {steps}"][key] for steps in numbers], "o-", ms=3, label=solver)
        column[1].axhline(ways_["dopri5 (rtol 1e-5)"]["energy"], color="0.5", lw=0.8, ls="--", label="dopri5")
        column[0].set(title=fit, xscale="log", yscale="log", ylabel="error")
        column[1].set(xlabel="network evaluations", ylabel="energy")
    axes[1, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "solvers.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="processor seconds of each fit")
    options = parser.parse_args()
    found = {}
    for fit, model in fits(options.data, options.seconds):
        found[fit] = judged(model)
        print(fit, {way: round(values["energy"], 3) for way, values in found[fit].items()}, flush=True)
    said = f"{datetime.date.today().isoformat()}, torch {torch.__version__}, one thread; fits of {options.seconds:g} processor seconds."
    write(found, said)
    draw(found)


if __name__ == "__main__":
    main()
