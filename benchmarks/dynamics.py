"""Unseen times and doses: the `dynamics` backbone beside `mlp` and the rules.

    python benchmarks/dynamics.py [--seeds 3 4 5] [--only linear simulated a549] [--out benchmarks/results/dynamics]

linear      cells of a linear differential equation with a known solution (`linear_system.py`): error of the mean effect at three times that
            were not measured, relative to the true effect.
simulated   a screen at five times, or five doses, one of which is held out (4: between others; 16: beyond): squared error of the mean
            log expression of 200 control cells, summed over genes and conditions, relative to that of "no effect"; the truth is noise-free.
a549        1 h held out between 0 and 3 h, 3 h held out beyond 0 and 1 h: against real cells.

`mlp` is the default model, whose means come from the measured rule; `mlp, no rule` the same flow without it.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from linear_system import ASKED, MEASURED, LinearSystem, P, error, fit

import counterflow as cf
from counterflow.data.simulate import simulate_screen
from counterflow.demo import fit_rules, mean_expression
from counterflow.evaluate.evaluate import evaluate

MODELS = {"dynamics": {"backbone": "dynamics"}, "mlp": {}, "mlp, no rule": {"anchor": "none"}}
RULES = ("additive", "interpolate")
LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)
SCREENS = {
    "time": {"n_perturbations": 8, "n_pairs": 4, "cells_control": 300, "times": LEVELS},
    "dose": {"n_perturbations": 4, "n_pairs": 2, "cells_control": 400, "n_compounds": 10, "doses": LEVELS},
}
CONTROLS, CONDITIONS, STEPS = 200, 12, 300


def linear(seed):
    """Rows of one linear system."""
    system, rows = LinearSystem(seed), []
    for backbone, steps in (("dynamics", 4000), ("mlp", 4000)):
        started = time.process_time()
        module = fit(system, backbone, steps=steps, seed=seed)
        seconds = time.process_time() - started
        for at in (*ASKED, *MEASURED):
            wrong = float(np.mean([error(system, module, p, at) for p in range(P)]))
            rows.append(
                {"part": "linear", "seed": seed, "method": backbone, "held out": at in ASKED, "at": at, "error": wrong, "cpu_s": seconds}
            )
    return rows


def fits(adata, seed):
    """Every model, and how long it took."""
    for name, options in MODELS.items():
        started = time.process_time()
        model = cf.CounterFlow(adata.copy(), seed=seed, **options)
        model.train(max_steps=STEPS, progress=False)
        yield name, model, time.process_time() - started


def simulated(seed, axis, level):
    """Rows of one screen with one level held out."""
    size = {"n_genes": 120, "cells_per_condition": 60, "n_cell_types": 2, "n_batches": 1}
    screen = simulate_screen(**size, **SCREENS[axis], seed=seed)
    adata, key = screen.adata, axis
    several = screen.condition_table.groupby("perturbation", observed=True)[key].nunique()
    asked = screen.condition_table[lambda t: (t[key] == level) & t["perturbation"].map(several).astype(int).gt(1)]
    label = adata.obs["perturbation"].astype(str)
    adata.obs["split"] = np.where((adata.obs[key] == level) & label.isin(asked["perturbation"].astype(str)), "test", "train")
    cf.CounterFlow.setup_anndata(
        adata, perturbation_key="perturbation", control="control", covariate_keys=["cell_type"], match_keys=["cell_type"],
        library_size_key="n_counts", split_key="split", **{f"{key}_key": key},
    )  # fmt: skip
    asked = asked[["perturbation", key]].astype({"perturbation": str}).head(CONDITIONS).reset_index(drop=True)
    controls = adata[(label == "control").to_numpy()][:CONTROLS].copy()
    truth = [screen.true_mean(row["perturbation"], controls.obs_names, **{key: row[key]}) for _, row in asked.iterrows()]
    nothing = screen.true_mean("control", controls.obs_names)
    none = sum(((one - nothing) ** 2).sum() for one in truth)
    rows = []

    def score(name, predictor, seconds):
        wrong = 0.0
        for i, one in enumerate(truth):
            wrong += ((mean_expression(predictor.predict(controls, asked.iloc[[i]])) - one) ** 2).sum()
        rows.append(
            {"part": "simulated", "seed": seed, "axis": axis, "at": level, "method": name, "error": float(wrong / none), "cpu_s": seconds}
        )

    for name, model, seconds in fits(adata, seed):
        score(name, model, seconds)
    for name, rule in fit_rules(adata, RULES).items():
        score(name, rule, 0.0)
    return rows


def a549(seed, level, folder):
    """Rows of the time course with one time held out."""
    adata = cf.read_h5ad(folder / "cao2018_a549_dex_timecourse.h5ad")
    adata.obs["split"] = np.where((adata.obs["time_h"] == level) & (adata.obs["perturbation"] != "control"), "test", "train")
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", time_key="time_h", split_key="split")
    models = {name: (model, seconds) for name, model, seconds in fits(adata, seed)}
    found = evaluate(
        {f"our {name}": m for name, (m, _) in models.items()}, adata, metrics=["pearson_delta", "energy"], baselines=list(RULES)
    ).rows
    rows = []
    for (method, metric), part in found[found["metric"].isin(["pearson_delta", "energy"])].groupby(["method", "metric"]):
        rows.append(
            {
                "part": "a549",
                "seed": seed,
                "at": level,
                "method": method.removeprefix("our "),
                "metric": metric,
                "value": float(part["value"].mean()),
            }
        )
    return rows


def page(table):
    """The figures as Markdown: median over seeds, and the extremes."""
    lines = ["# Unseen times and doses", "", "Made by `python benchmarks/dynamics.py`. Median over seeds, in brackets the extremes.", ""]

    def cells(part, value):
        middle = part.groupby("method", sort=False)[value].agg(["median", "min", "max"])
        return {name: f"{row['median']:.3f} ({row['min']:.3f} to {row['max']:.3f})" for name, row in middle.iterrows()}

    def rows(title, head, found, order):
        lines.extend([f"## {title}", "", "| " + " | ".join([head, *order]) + " |", "|---" * (1 + len(order)) + "|"])
        lines.extend("| " + " | ".join([name, *(one.get(m, "") for m in order)]) + " |" for name, one in found)
        lines.append("")

    if len(part := table[table["part"] == "linear"]):
        named = [
            (f"{at:g}" + (" (not measured)" if at in ASKED else ""), cells(part[part["at"] == at], "error"))
            for at in sorted(part["at"].unique())
        ]
        rows("A linear system: distance from the true mean effect, relative to it", "time", named, ["dynamics", "mlp"])
    if len(part := table[table["part"] == "simulated"]):
        where = {4.0: "between", 16.0: "beyond"}
        named = [(f"{axis} {at:g}, {where[at]}", cells(one, "error")) for (axis, at), one in part.groupby(["axis", "at"])]
        rows("Simulated screens: squared error, relative to that of no effect", "held out", named, [*MODELS, *RULES])
    if len(part := table[table["part"] == "a549"]):
        named = [(f"{at:g} h, {metric}", cells(one, "value")) for (at, metric), one in part.groupby(["at", "metric"])]
        rows("A549 and dexamethasone", "held out", named, [*MODELS, *RULES, "control", "split_half"])
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--only", nargs="+", default=["linear", "simulated", "a549"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dynamics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = json.loads(options.out.with_suffix(".json").read_text()) if options.out.with_suffix(".json").exists() else []
    rows = [row for row in kept if row["part"] not in options.only]
    for seed in options.seeds:
        if "linear" in options.only:
            rows += linear(seed)
        if "simulated" in options.only:
            rows += [row for axis in SCREENS for level in (4.0, 16.0) for row in simulated(seed, axis, level)]
        if "a549" in options.only:
            rows += [row for level in (1.0, 3.0) for row in a549(seed, level, options.data)]
        print(f"seed {seed} done", flush=True)
    options.out.with_suffix(".json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    text = page(pd.DataFrame(rows))
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
