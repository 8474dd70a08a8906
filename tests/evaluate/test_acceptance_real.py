"""The same cheats on a small real file: no truth is known there, so the honest predictor is an independent half of the real cells."""

import os
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from counterflow.data.files import read_h5ad
from counterflow.data.schema import Setup, declare
from counterflow.evaluate.evaluate import evaluate
from counterflow.evaluate.table import badness
from counterflow.evaluate.verdict import faults

FILE = Path(os.environ.get("COUNTERFLOW_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "norman2019_k562_crispra.h5ad"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the real files are not beside the checkout (COUNTERFLOW_DATA)")

METRICS = ("pearson_delta", "pearson_delta_pertref", "pds_cosine", "mse", "wmse", "energy", "c2st_gene", "std_log2ratio")
FAMILIES = (("pearson_delta_pertref", "pds_cosine"), ("mse", "wmse"), ("energy",), ("c2st_gene",))
NAMED = {
    "tile": "COLLAPSED",
    "generic": "ONE GENERIC RESPONSE",
    "shuffled": "NOT TELL CONDITIONS APART",
    "times3": "TOO LARGE",
    "times0.3": "TOO SMALL",
    "variance2": "TOO SPREAD OUT",
    "unchanged": "NO EFFECT",
}


class OtherHalf:
    """Real cells that the scorer has never seen; `change` (cells, source controls) spoils them."""

    def __init__(self, cells, change=lambda cells, control: cells, ask=lambda label: label):
        self.cells, self.change, self.ask = cells, change, ask

    def predict(self, adata, conditions):
        cells = self.cells[self.ask(str(conditions["perturbation"].iloc[0]))]
        return AnnData(self.change(cells, log1p(adata)).astype(np.float32), var=adata.var.copy())


def log1p(adata):
    return np.log1p(1e4 * adata.X.toarray() / adata.obs["n_counts_full"].to_numpy()[:, None])


@pytest.fixture(scope="module")
def real():
    """The eight conditions of the largest effects are held out, and half of their cells hidden; the others are training."""
    adata = read_h5ad(FILE)
    rng = np.random.default_rng(0)
    label = adata.obs["perturbation"].astype(str).to_numpy()
    values = log1p(adata)
    origin = values[label == "control"].mean(0)
    size = {name: np.linalg.norm(values[label == name].mean(0) - origin) for name in sorted(set(label) - {"control"})}
    held_out = sorted(size, key=size.__getitem__)[-8:]
    keep, hidden = np.ones(adata.n_obs, dtype=bool), {}
    for name in held_out:
        rows = rng.permutation(np.flatnonzero(label == name))
        hidden[name] = values[rows[::2]]
        keep[rows[::2]] = False
    seen = adata[keep].copy()
    seen.obs["split"] = np.where(seen.obs["perturbation"].isin(held_out), "test", "train")
    declare(seen, Setup("perturbation", "control", library_size_key="n_counts_full", split_key="split"))
    return seen, hidden


@pytest.fixture(scope="module")
def table(real):
    adata, hidden = real
    names = list(hidden)
    other = dict(zip(names, [*names[3:], *names[:3]], strict=True))
    origin = log1p(adata[adata.obs["perturbation"] == "control"]).mean(0)
    generic = np.mean([cells.mean(0) for cells in hidden.values()], 0) - origin

    def scaled(factor):
        return lambda cells, control: np.maximum(cells + (factor - 1) * (cells.mean(0) - control.mean(0)), 0)

    predictors = {
        "honest": OtherHalf(hidden),
        "tile": OtherHalf(hidden, lambda cells, _: np.tile(cells.mean(0), (len(cells), 1))),
        "generic": OtherHalf(hidden, lambda _, control: np.maximum(control + generic, 0)),
        "shuffled": OtherHalf(hidden, ask=other.__getitem__),
        "times3": OtherHalf(hidden, scaled(3)),
        "times0.3": OtherHalf(hidden, scaled(0.3)),
        "variance2": OtherHalf(hidden, lambda cells, _: cells.mean(0) + np.sqrt(2) * (cells - cells.mean(0))),
        "unchanged": OtherHalf(hidden, lambda _, control: control),
    }
    return evaluate(predictors, adata, metrics=METRICS, baselines=("control", "mean"), n_halvings=5)


def mean_of(table, method, metric):
    return float(badness(metric, np.array([np.nanmean(table.per_condition(metric)[method])]))[0])


@pytest.mark.parametrize("cheat", NAMED)
def test_every_cheat_is_rejected_by_some_family_and_wins_none_clearly(table, cheat):
    gains = {}
    for family in FAMILIES:
        scale = [abs(mean_of(table, "mean", m) - mean_of(table, "split_half", m)) for m in family]
        gains[family] = max((mean_of(table, cheat, m) - mean_of(table, "honest", m)) / s for m, s in zip(family, scale, strict=True))
    assert max(gains.values()) > 0.25, gains
    assert min(gains.values()) > -0.1, gains


@pytest.mark.parametrize("cheat", NAMED)
def test_the_verdict_names_the_cheat(table, cheat):
    assert NAMED[cheat] in table.verdict(cheat)


def test_an_independent_half_is_at_the_ceiling_and_accused_of_nothing(table):
    assert faults(table, "honest") == []
    for metric in ("pearson_delta", "pds_cosine", "energy"):
        gap = abs(mean_of(table, "mean", metric) - mean_of(table, "split_half", metric))
        assert abs(mean_of(table, "honest", metric) - mean_of(table, "split_half", metric)) < 0.2 * gap
