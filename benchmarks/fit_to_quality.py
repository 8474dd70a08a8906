"""Processor seconds until held-out cells are predicted as well as they will be: counterflow's default fit and CellFlow's, on Kang.

    python benchmarks/fit_to_quality.py --data FOLDER [--cellflow PYTHON] [--rounds 3]

Stimulated NK cells are held out; both see the other cells and the NK controls. Score: energy distance of predicted and real stimulated NK
cells, relative to that of the NK controls, on 50 principal components of the training cells, the same for both. Ours is one whole fit for
each number of steps (space, rule, flow, trust, intervals), CellFlow's one training that is looked at on the way, by
`benchmarks/fit_to_quality_cellflow.py` in an environment of its own, sampling by Euler in 20 steps; compiling counts, predicting does not.
``to_quality``: seconds until the score is within a tenth of the one after the most steps. Writes `benchmarks/results/fit_to_quality.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np

STEPS = (5, 20, 50, 100, 200)
CELLFLOW_STEPS = (20, 50, 100, 200, 400, 800, 1600)
HELD_OUT = "NK"
OUT = Path(__file__).parent / "results" / "fit_to_quality.json"


def prepare(folder: Path, to: Path) -> None:
    """Counts, split and common components, in one file."""
    import scanpy as sc

    adata = anndata.read_h5ad(folder / "kang2018_pbmc_ifnb.h5ad")
    test = (adata.obs["cell_type"] == HELD_OUT) & (adata.obs["perturbation"] != "control")
    adata.obs["split"] = np.where(test, "test", "train")
    adata.obsm["X_pca"] = components(adata, *loadings(adata, sc))
    adata.write_h5ad(to)


def loadings(adata: anndata.AnnData, sc: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 50 components of the training cells' log expression."""
    train = adata[adata.obs["split"] == "train"].copy()
    sc.pp.normalize_total(train, target_sum=1e4)
    sc.pp.log1p(train)
    sc.pp.pca(train, n_comps=50)
    return np.asarray(train.X.mean(0)).ravel(), train.varm["PCs"]


def components(adata: anndata.AnnData, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    import scanpy as sc

    cells = adata.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return np.asarray(cells.X @ directions - mean @ directions, dtype=np.float32)


def score(predicted: np.ndarray, adata: anndata.AnnData) -> float:
    from counterflow.evaluate.metrics import energy

    held = adata.obs["cell_type"] == HELD_OUT
    real = adata.obsm["X_pca"][held & (adata.obs["split"] == "test")]
    control = adata.obsm["X_pca"][held & (adata.obs["perturbation"] == "control")]
    return float(energy(predicted.astype(float), real.astype(float)) / energy(control.astype(float), real.astype(float)))


def one_fit(path: Path, steps: int) -> None:
    """In this process: fit, then say what it took and how good it is."""
    import scanpy as sc
    import torch

    import counterflow as cf
    from counterflow import training  # noqa: F401  imports are not on the clock

    torch.set_num_threads(1)
    adata = anndata.read_h5ad(path)
    begun = time.process_time()
    cf.CounterFlow.setup_anndata(
        adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], covariate_keys=["cell_type"], split_key="split"
    )
    model = cf.CounterFlow(adata)
    model.train(max_steps=steps, progress=False)
    seconds = time.process_time() - begun
    controls = adata[(adata.obs["cell_type"] == HELD_OUT) & (adata.obs["perturbation"] == "control")].copy()
    predicted = model.predict(controls, "IFNb")
    cells = anndata.AnnData(predicted.layers["counts"], obs=predicted.obs, var=predicted.var)
    full = anndata.AnnData(adata.X.copy(), obs=adata.obs, var=adata.var)
    print(json.dumps({"steps": steps, "seconds": seconds, "score": score(components(cells, *loadings(full, sc)), adata)}))


def run(command: list[str]) -> list[dict]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cellflow", type=Path, help="python of an environment with CellFlow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_fit(Path(options.one[0]), int(options.one[1]))
        return
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kang.h5ad"
        prepare(options.data, path)
        adata = anndata.read_h5ad(path)
        for round_ in range(options.rounds):
            for steps in STEPS:
                rows += [
                    {"tool": "counterflow", "round": round_} | line
                    for line in run([sys.executable, __file__, "--one", str(path), str(steps)])
                ]
                print(rows[-1], flush=True)
            if options.cellflow:
                script = Path(__file__).with_name("fit_to_quality_cellflow.py")
                for line in run([str(options.cellflow), str(script), str(path), folder, HELD_OUT, *map(str, CELLFLOW_STEPS)]):
                    states = np.load(line.pop("states"))
                    rows.append({"tool": "CellFlow", "round": round_} | line | {"score": score(states, adata)})
                    print(rows[-1], flush=True)
    result = {"date": datetime.date.today().isoformat(), "threads": 1, "to_quality": {}, "rows": rows}
    for tool in dict.fromkeys(row["tool"] for row in rows):
        result["to_quality"][tool] = summary([row for row in rows if row["tool"] == tool])
    print(result["to_quality"])
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def summary(rows: list[dict]) -> dict[str, float]:
    """Medians over rounds, then the first number of steps that is within a tenth of the last."""
    steps = sorted({row["steps"] for row in rows})
    scores = {n: statistics.median(row["score"] for row in rows if row["steps"] == n) for n in steps}
    enough = next(n for n in steps if all(scores[m] <= 1.1 * scores[steps[-1]] for m in steps if m >= n))
    seconds = [row["seconds"] for row in rows if row["steps"] == enough]
    return {"steps": enough, "seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds), "final": scores[steps[-1]]}


if __name__ == "__main__":
    main()
