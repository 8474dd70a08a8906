"""Sizes, tokens and learning rates of each backbone, judged on validation conditions at one budget of processor seconds.

Part ``backbones`` of `benchmarks/search.py`. Kang without NK cells, which the comparison holds out, 1,000 genes: FCGR3A monocytes are
predicted from the other types; simulated screen 10, which no table shows: a third of its hidden pairs. All in principal components.

For each fit two ways of asking: the *flow alone* (it is followed wherever it goes), and the *recipe* (it is followed as far as it learnt
that it may be). ``error``: squared error of the predicted mean effect over genes, relative to predicting no change. ``energy``: distance of
predicted and real cells in the components, relative to that of the controls. Less is better.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import FILES, SETUP
from anndata import AnnData

import counterflow as cf
from counterflow import demo
from counterflow.calibration import KINDS
from counterflow.data.matrix import log_normalised
from counterflow.evaluate.metrics import energy
from counterflow.recentring import Trust

SECONDS, BATCH = 10.0, 128
N_GENES = 1000
CELLS = 200  # that are compared
TEST, VALIDATED = "NK", ("FCGR3A+Mono",)
CANDIDATES: dict[str, list[tuple[dict[str, Any], float]]] = {  # backbone -> options, learning rate; the first is what was there
    "dit": [({}, 1e-3), ({"genes_per_token": 4}, 1e-3), ({"genes_per_token": 4}, 3e-3), ({"genes_per_token": 4, "depth": 2}, 3e-3)],
    "set": [({}, 1e-3), ({}, 3e-3), ({"depth": 2, "n_inducing": 8}, 3e-3)],
    "ssm": [({}, 1e-3), ({"genes_per_token": 4}, 3e-3), ({"genes_per_token": 4, "depth": 2}, 3e-3)],
    "mlp": [({}, 1e-3), ({}, 3e-3)],
}


def tasks(folder: Path) -> Iterator[tuple[str, AnnData, list[tuple[str, np.ndarray]]]]:
    """Name, a declared AnnData, and what to predict: condition and the rows of its real cells."""
    for kind in VALIDATED:
        adata = cf.read_h5ad(folder / FILES["kang"])
        adata = adata[adata.obs["cell_type"] != TEST].copy()
        test = ((adata.obs["perturbation"] != "control") & (adata.obs["cell_type"] == kind)).to_numpy()
        adata.obs["split"] = np.where(test, "test", "train")
        cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **SETUP["kang"])
        yield f"Kang {kind}", adata, [("IFNb", np.flatnonzero(test))]
    screen, hidden = demo.screen_with_hidden_pairs(10)
    rows = {name: np.flatnonzero(screen.adata.obs["perturbation"] == name) for name in hidden[::3]}
    yield "simulated 10", screen.adata, list(rows.items())


def scores(model: cf.CounterFlow, adata: AnnData, wanted: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Error and energy, mean over what is wanted."""
    found = []
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    key = model.setup.library_size_key
    library = adata.obs[key].to_numpy(dtype=float) if key else np.asarray(adata.X.sum(1), dtype=float).ravel()
    genes = adata.var_names.get_indexer(list(model.genes))
    for name, rows in wanted:
        here = np.isin(adata.obs["cell_type"], adata.obs["cell_type"].iloc[rows].unique()) & is_control
        controls = np.random.default_rng(0).permutation(np.flatnonzero(here))[:CELLS]
        predicted = model.predict(adata[np.sort(controls)], name)
        before, real = (log_normalised(adata.X[some], library[some])[:, genes].toarray() for some in (controls, rows))
        after = np.asarray(predicted.X.todense())
        missed = ((after.mean(0) - real.mean(0)) ** 2).sum() / ((before.mean(0) - real.mean(0)) ** 2).sum()
        clouds = [cells @ _axes(before, real).T for cells in (before, after, real)]
        found.append((missed, energy(clouds[1], clouds[2]) / energy(clouds[0], clouds[2])))
    return np.mean(found, 0)


def _axes(before: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Principal axes of the controls and the real cells, the same for every model."""
    cells = np.vstack([before, real])
    return np.linalg.svd(cells - cells.mean(0), full_matrices=False)[2][:30]


def backbones(folder: Path, log: Path) -> list[str]:
    """One row per candidate; `log` keeps what is done."""
    done: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    everything = list(tasks(folder))
    for backbone, candidates in CANDIDATES.items():
        for options, lr in candidates:
            for task, adata, wanted in everything:
                name = f"{backbone} | {json.dumps(options)} | {lr:g} | {task}"
                if name in done:
                    continue
                model = cf.CounterFlow(adata, backbone=backbone, backbone_kwargs=options, n_top_genes=N_GENES)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model.train(max_seconds=SECONDS, batch_size=BATCH, lr=lr, progress=False)
                recipe = scores(model, adata, wanted)
                model.trust = dict.fromkeys(KINDS, Trust(1.0, 1.0))
                done[name] = {"steps": model.n_steps_trained, "recipe": recipe.tolist(), "alone": scores(model, adata, wanted).tolist()}
                log.write_text(json.dumps(done, indent=1) + "\n")
                print(name, done[name], flush=True)
    lines = [
        f"{SECONDS:g} processor seconds each, batches of {BATCH}; mean over {len(everything)} tasks (in brackets: each of them).",
        "",
        "| backbone | options | lr | steps | flow alone: error | flow alone: energy | recipe: error | recipe: energy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for backbone, candidates in CANDIDATES.items():
        for options, lr in candidates:
            rows = [done[f"{backbone} | {json.dumps(options)} | {lr:g} | {task}"] for task, _, _ in everything]
            shown = ", ".join(f"{key} {value}" for key, value in options.items()) or "as it was"
            cells = [_mean([row[way][i] for row in rows]) for way in ("alone", "recipe") for i in (0, 1)]
            lines.append(f"| {backbone} | {shown} | {lr:g} | {int(np.mean([row['steps'] for row in rows]))} | {' | '.join(cells)} |")
    return lines


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.2f}' for value in values)})"


def main() -> None:
    """The fits alone; `search.py` writes the page."""
    torch.set_num_threads(1)
    import os

    folder = Path(os.environ.get("COUNTERFLOW_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    print("\n".join(backbones(folder, Path(__file__).parent / "results" / "search_backbones.json")))


if __name__ == "__main__":
    main()
