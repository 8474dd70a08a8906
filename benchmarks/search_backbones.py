"""Sizes, tokens and learning rates of each backbone, judged on validation conditions at one budget of processor seconds.

Part ``backbones`` of `benchmarks/search.py`. Kang without NK cells, which the comparison holds out, 1,000 genes: FCGR3A monocytes are
predicted from the other types; simulated screen 10, which no table shows: four of its hidden pairs in each cell type. All in principal
components. One fit each, of the flow alone (the recipe follows it as far as left-out conditions say, which hides differences). ``error``:
squared error of the predicted mean state, relative to that of no change. ``energy``: distance of predicted and real cells, relative to that
of the controls. Less is better.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import FILES, SETUP
from anndata import AnnData
from held_out import train_the_flow, units
from numpy.typing import NDArray

import counterflow as cf
from counterflow import demo
from counterflow.prediction import displaced
from counterflow.sampling import Sampling

SECONDS, BATCH, N_GENES = 10.0, 128, 1000
STEPS, PAIRS = 8, 4
TEST, VALIDATED = "NK", "FCGR3A+Mono"
CANDIDATES: dict[str, list[tuple[dict[str, Any], float]]] = {  # backbone -> options, learning rate; the first is what was there
    "mlp": [({}, 1e-3), ({}, 3e-3), ({"size": "S"}, 3e-3)],
    "dit": [({}, 1e-3), ({"genes_per_token": 4}, 3e-3), ({"genes_per_token": 4, "depth": 2}, 3e-3)],
    "set": [({}, 1e-3), ({}, 3e-3), ({"depth": 2, "n_inducing": 8}, 3e-3)],
    "ssm": [({}, 1e-3), ({"genes_per_token": 4}, 3e-3), ({"genes_per_token": 4, "depth": 2}, 3e-3)],
}


def tasks(folder: Path) -> Iterator[tuple[str, AnnData]]:
    """A declared AnnData; what is to be predicted is its ``test``."""
    adata = cf.read_h5ad(folder / FILES["kang"])
    adata = adata[adata.obs["cell_type"] != TEST].copy()
    test = (adata.obs["perturbation"] != "control") & (adata.obs["cell_type"] == VALIDATED)
    adata.obs["split"] = np.where(test, "test", "train")
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **SETUP["kang"])
    yield "Kang", adata
    screen, hidden = demo.screen_with_hidden_pairs(10)
    others = (screen.adata.obs["split"] == "test") & ~screen.adata.obs["perturbation"].isin(hidden[:PAIRS])
    screen.adata.obs["split"] = screen.adata.obs["split"].where(~others, "val")
    yield "simulated", screen.adata


def one_fit(adata: AnnData, backbone: str, options: dict[str, Any], lr: float) -> cf.CounterFlow:
    """A flow on top of the rule, without the fits that tell how far it is trusted."""
    model = cf.CounterFlow(adata, backbone=backbone, backbone_kwargs=options, n_top_genes=N_GENES)
    return train_the_flow(model, max_seconds=SECONDS, batch_size=BATCH, lr=lr)


def scores(model: cf.CounterFlow) -> NDArray[np.float64]:
    """Error and energy, mean over the held-out conditions and contexts."""
    found = []
    for one in units(model):
        moved = displaced(model.module, one.before, one.controls, one.ids, one.factual, Sampling(n_steps=STEPS)).double().numpy()
        found.append(one.scores(one.before.double().numpy() + moved + one.anchor))
    return np.mean(found, 0)


def backbones(folder: Path, log: Path) -> list[str]:
    """One row per candidate; `log` keeps what is done."""
    done: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    everything = list(tasks(folder))
    for backbone, candidates in CANDIDATES.items():
        for options, lr in candidates:
            for task, adata in everything:
                name = f"{backbone} | {json.dumps(options)} | {lr:g} | {task}"
                if name not in done:
                    model = one_fit(adata, backbone, options, lr)
                    error, distance = scores(model)
                    done[name] = {"steps": model.n_steps_trained, "error": round(error, 4), "energy": round(distance, 4)}
                    log.write_text(json.dumps(done, indent=1) + "\n")
                    print(name, done[name], flush=True)
    names = [task for task, _ in everything]
    heads = [f"{name}: {what}" for name in names for what in ("steps", "error", "energy")]
    lines = [
        f"{SECONDS:g} processor seconds each, batches of {BATCH}.",
        "",
        "| backbone | options | lr | " + " | ".join(heads) + " |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for backbone, candidates in CANDIDATES.items():
        for options, lr in candidates:
            rows = [done[f"{backbone} | {json.dumps(options)} | {lr:g} | {name}"] for name in names]
            shown = ", ".join(f"{key} {value}" for key, value in options.items()) or "as it was"
            cells = [f"{row['steps']} | {row['error']:.3f} | {row['energy']:.3f}" for row in rows]
            lines.append(f"| {backbone} | {shown} | {lr:g} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """The fits alone; `search.py` writes the page."""
    torch.set_num_threads(1)
    folder = Path(os.environ.get("COUNTERFLOW_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    print("\n".join(backbones(folder, Path(__file__).parent / "results" / "search_backbones.json")))


if __name__ == "__main__":
    main()
