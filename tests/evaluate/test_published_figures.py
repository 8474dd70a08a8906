"""Floor, baselines and ceiling on real files against figures that were measured independently, before this code existed."""

import os
from pathlib import Path

import numpy as np
import pytest

from counterflow.data.files import read_h5ad
from counterflow.data.schema import Setup, declare
from counterflow.data.split_file import Keys
from counterflow.data.splits import folds
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.evaluate import evaluate
from counterflow.evaluate.table import concat

DATA = Path(os.environ.get("COUNTERFLOW_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
METRICS = ("pearson_delta", "pds_cosine", "energy")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not beside the checkout (COUNTERFLOW_DATA)"),
]


class Resampled:
    """Predicted cells drawn with replacement, as the published figure was measured: 100 controls are few."""

    def __init__(self, rule, seed):
        self.rule, self.seed = rule, seed

    def predict(self, adata, conditions):
        cells = self.rule.predict(adata, conditions)
        out = cells[np.random.default_rng(self.seed).choice(cells.n_obs, cells.n_obs)].copy()
        out.obs_names_make_unique()
        return out


def means(table, metric):
    return table.per_condition(metric).mean()


def test_kang_held_out_types():
    adata = read_h5ad(DATA / "kang2018_pbmc_ifnb.h5ad")
    tables = []
    for split in folds("unseen_context", adata.obs, Keys("perturbation", "control", context_key="cell_type"), val_fraction=0.0):
        adata.obs["split"] = split.labels(adata.obs)
        declare(adata, Setup("perturbation", "control", match_keys=("cell_type",), library_size_key="n_counts_full", split_key="split"))
        tables.append(evaluate({}, adata, metrics=METRICS, split=str(split.arguments["held_out"])))
    table = concat(tables)
    delta, energy = means(table, "pearson_delta"), means(table, "energy")
    assert len(table.per_condition("pearson_delta")) == 7
    assert delta["control"] == pytest.approx(-0.02, abs=0.02 + 1e-9)
    assert delta["mean"] == pytest.approx(0.78, abs=0.02)
    assert delta["split_half"] == pytest.approx(0.88, abs=0.02)
    assert energy["control"] == pytest.approx(11.1, rel=0.15)
    assert energy["split_half"] == pytest.approx(0, abs=0.1)  # unbiased: 0 up to noise
    assert np.mean([t["energy"] for t in table.self_test.values()]) < 0.05
    assert np.mean([t["coverage"] for t in table.self_test.values()]) > 0.9


def test_norman_pairs_with_both_singles_seen():
    adata = read_h5ad(DATA / "norman2019_k562_crispra.h5ad")
    label = adata.obs["perturbation"].astype(str)
    singles = {name for name in label.unique() if "+" not in name}
    both = {name for name in label.unique() if "+" in name and singles.issuperset(name.split("+"))}
    assert len(both) == 5
    adata.obs["split"] = np.where(label.isin(both), "test", "train")
    declare(adata, Setup("perturbation", "control", library_size_key="n_counts_full", split_key="split"))
    rule = BASELINES["additive"]()
    rule.train(adata)
    draws = {f"resampled {i}": Resampled(rule, i) for i in range(40)}  # one draw scatters by .035
    resampled = evaluate(draws, adata, metrics=("pearson_delta",), n_halvings=5)
    assert means(resampled, "pearson_delta")[resampled.models].mean() == pytest.approx(0.82, abs=0.03)
    table = evaluate({}, adata, metrics=METRICS, baselines=("additive", "additive+ct"), n_halvings=20)
    assert means(table, "pearson_delta")["additive"] == pytest.approx(0.85, abs=0.02)  # without the noise of drawing control cells
    assert means(table, "pearson_delta")["split_half"] == pytest.approx(0.87, abs=0.03)
    assert means(table, "pds_cosine")["additive"] == pytest.approx(0.97, abs=0.03)
    assert means(table, "energy")["additive+ct"] == pytest.approx(0.008, abs=0.02)


def test_a549_one_hour():
    adata = read_h5ad(DATA / "cao2018_a549_dex_timecourse.h5ad")
    adata.obs["split"] = np.where(adata.obs["time_h"] == 1, "test", "train")
    declare(adata, Setup("perturbation", "control", time_key="time_h", split_key="split"))
    table = evaluate({}, adata, metrics=METRICS)
    assert means(table, "pearson_delta")[table.baselines].max() == pytest.approx(0.865, abs=0.02)
    assert means(table, "pearson_delta")["split_half"] == pytest.approx(0.97, abs=0.02)
