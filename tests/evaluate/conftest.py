"""A simulated screen with a known truth, and predictors that know it or cheat."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.schema import Setup, declare
from counterflow.data.simulate import simulate_screen
from counterflow.spaces.counts import cell_seeds, transport


def log1p(counts):
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)


@pytest.fixture(scope="session")
def simulated():
    """Ten held-out pairs of one cell type, whose singles and other pairs are training."""
    screen = simulate_screen(
        n_genes=80, n_perturbations=8, n_pairs=16, cells_per_condition=60, cells_control=260, n_cell_types=1, n_batches=1, seed=1
    )
    pairs = [name for name in screen.conditions if "+" in name]
    screen.adata.obs["split"] = np.where(screen.adata.obs["perturbation"].isin(pairs[:10]), "test", "train")
    declare(screen.adata, Setup("perturbation", "control", split_key="split"))
    return screen


class Honest:
    """Knows the true expected counts, and transports the counts of the control cells; `change` spoils the result."""

    def __init__(self, screen, change=None, ask=None):
        self.screen, self.change, self.ask = screen, change, ask or (lambda name: name)

    def predict(self, adata: AnnData, conditions: pd.DataFrame) -> AnnData:
        name = self.ask(str(conditions["perturbation"].iloc[0]))
        rows = [name.split("-")[0] for name in adata.obs_names]  # a control that comes again has a suffix
        before, after = (self.screen.counterfactual(rows, what) for what in ("control", name))
        seeds = cell_seeds(rows)
        moved = transport(adata.X, before, after, np.full(adata.n_vars, np.inf), 0, seeds)
        control, cells = log1p(adata.X.toarray()), log1p(moved.astype(float))
        if self.change is not None:
            cells = self.change(cells, control)
        return AnnData(sparse.csr_matrix(cells), obs=adata.obs.copy(), var=adata.var.copy())


@pytest.fixture(scope="session")
def honest(simulated):
    return Honest(simulated)


@pytest.fixture(scope="session")
def cheats(simulated):
    """Name -> a predictor with one known fault."""
    held_out = list(simulated.adata.obs["perturbation"][simulated.adata.obs["split"] == "test"].unique())
    other = dict(zip(held_out, [*held_out[3:], *held_out[:3]], strict=True))
    generic = np.mean([simulated.true_mean(name) - simulated.true_mean("control") for name in held_out], 0)

    def scaled(factor):
        return lambda cells, control: np.maximum(control + factor * (cells.mean(0) - control.mean(0)), 0).astype(np.float32)

    def inflated(cells, control):
        return np.maximum(cells.mean(0) + 2**0.5 * (cells - cells.mean(0)), -9).astype(np.float32)

    return {
        "tile": Honest(simulated, lambda cells, control: np.tile(cells.mean(0), (len(cells), 1))),
        "generic": Honest(simulated, lambda cells, control: np.maximum(control + generic, 0).astype(np.float32)),
        "shuffled": Honest(simulated, ask=other.__getitem__),
        "times3": Honest(simulated, scaled(3.0)),
        "times0.3": Honest(simulated, scaled(0.3)),
        "variance2": Honest(simulated, inflated),
        "unchanged": Honest(simulated, lambda cells, control: control),
    }


@pytest.fixture(scope="session")
def table(simulated, honest, cheats):
    """Honest predictor and all cheats between floor, baselines and ceiling."""
    from counterflow.evaluate import evaluate as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_CLASSIFIED", 2)  # forests take nearly all of the time
        return module.evaluate({"honest": honest, **cheats}, simulated.adata, n_halvings=3, dataset="simulated")
