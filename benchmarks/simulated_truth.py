"""Error to the *true* counterfactual mean of hidden pairs, with interactions and without, over seeds of the simulator.

    python benchmarks/simulated_truth.py [--seeds 3] [--out benchmarks/results/simulated_truth.json]

Without interactions the additive rule is the truth but for noise, and must win or tie. Everything is that of `counterflow demo`.
"""

import argparse
import json
import platform
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch

import counterflow
from counterflow import demo


def one(seed: int, interaction: float) -> dict:
    start = perf_counter()
    screen, hidden = demo.screen_with_hidden_pairs(seed, interaction=interaction)
    model = demo.fit(screen.adata, seed=seed)
    fitted = perf_counter()
    errors = demo.errors_to_truth(screen, hidden, {**demo.fit_rules(screen.adata), demo.MODEL: model})
    return {
        "seed": seed,
        "interaction": interaction,
        "hidden_pairs": len(hidden),
        "rmse": {name: round(float(value), 5) for name, value in errors.mean().items()},
        "pairs_where_best": {name: int((errors.idxmin(axis=1) == name).sum()) for name in errors},
        "fit_seconds": round(fitted - start, 1),
        "predict_seconds": round(perf_counter() - fitted, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="simulator seeds 0, 1, ...")
    parser.add_argument("--interactions", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "simulated_truth.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for interaction in options.interactions:
        for seed in range(options.seeds):
            rows.append(one(seed, interaction))
            print(f"interaction {interaction:g}, seed {seed}: {rows[-1]['rmse']}, fit {rows[-1]['fit_seconds']} s", flush=True)
    table = pd.DataFrame([{"interaction": row["interaction"], **row["rmse"]} for row in rows])
    print(table.groupby("interaction").mean().round(4).to_string())
    result = {
        "version": counterflow.__version__,
        "threads": options.threads,
        "machine": f"{platform.machine()} {platform.system()}, torch {torch.__version__}",
        "command": "python benchmarks/simulated_truth.py",
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
