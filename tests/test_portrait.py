"""A model, a diagnosis and a table in a notebook."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import counterflow as cf
from counterflow.evaluate.table import Table

_spec = importlib.util.spec_from_file_location("test_shown_for_portraits", Path(__file__).parent / "test_shown.py")
_shown = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shown)
safe, EVIL = _shown.safe, _shown.EVIL
SMALL = 20_000  # letters


@pytest.fixture(scope="module")
def model(tiny_screen):
    adata = tiny_screen.adata.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace({adata.obs["cell_type"].iloc[0]: EVIL})
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", covariate_keys=["cell_type"])
    return cf.CounterFlow(adata, space_kwargs={"n_components": 5})


def test_a_model_says_what_to_do_next_and_then_what_it_is(model):
    before = safe(model._repr_html_())
    assert "mlp on pca, not trained" in before and "model.train()" in before and "30" in before
    model.train(max_steps=2, batch_size=32, set_size=16, progress=False)
    after = model._repr_html_()
    assert len(after) < SMALL
    for said in ("2 steps", "trust in the flow", "on target", f"{model.trained_on['cells']:,} to train on"):
        assert said in safe(after)


def test_a_model_without_data_has_a_portrait():
    assert "without data" in safe(cf.CounterFlow(None)._repr_html_())


def test_a_diagnosis_lists_what_is_wrong_and_what_to_paste(tiny_screen):
    adata = tiny_screen.adata.copy()
    html = cf.doctor(adata)._repr_html_()
    assert "cf.CounterFlow.setup_anndata(adata" in safe(html) and len(html) < SMALL
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({adata.obs["perturbation"].iloc[-1]: EVIL})
    adata.X[0, 0] = np.nan
    text = safe(cf.doctor(adata)._repr_html_())
    assert "wrong" in text and "NaN" in text
    assert "No declaration" in safe(cf.doctor(adata[:, :5].copy()[adata.obs["perturbation"] != "control"].copy())._repr_html_())


def scores(methods):
    rows = [
        ("d", "s", 0, method, kind, condition, "", metric, value + i / 100, "all", "all")
        for i, condition in enumerate(("A", "B"))
        for metric in ("pearson_delta", "mse")
        for method, kind, value in methods
    ]
    names = ["dataset", "split", "seed", "method", "kind", "condition", "context", "metric", "value", "stratum", "third"]
    return Table(pd.DataFrame(rows, columns=names), notes=(EVIL,))


def test_a_table_is_small_and_its_models_are_bold():
    table = scores([("control", "baseline", 0.0), ("mean", "baseline", 0.2), (EVIL, "model", 0.6), ("split_half", "ceiling", 0.9)])
    html = table._repr_html_()
    text = safe(html)
    assert len(html) < SMALL and html.count("font-weight:bold") == 1
    assert "mean over 2 held-out conditions" in text and "0.605" in text and text.count(EVIL) >= 2
    assert len(repr(table)) < 400 and "summary()" in repr(table)


def test_a_table_without_scores_says_so():
    empty = scores([("control", "baseline", 0.0)])
    assert "no scores" in safe(Table(empty.rows[:0])._repr_html_())
