"""Cells that a declaration leaves out, in a copy: the user's object stays what it is."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import counterflow as cf
from counterflow.data.dropping import kept_cells, missing_values
from counterflow.data.schema import Setup, problems


@pytest.fixture
def spoilt(tiny_screen) -> AnnData:
    """Five cells without a label, one of them and two others without a count."""
    adata = tiny_screen.adata.copy()
    labels = adata.obs["perturbation"].astype(object)
    labels.iloc[:5] = [None, np.nan, "", "  ", None]
    adata.obs["perturbation"] = labels
    dense = adata.X.toarray()
    dense[[4, 10, 20]] = 0
    adata.X = dense
    return adata


@pytest.mark.parametrize(("options", "n"), [({}, 0), ({"drop_missing": True}, 5), ({"drop_empty_cells": True}, 3)])
def test_what_is_left_out(spoilt, options, n):
    kept = kept_cells(spoilt, Setup("perturbation", "control", **options))
    assert spoilt.n_obs - kept.n_obs == n and (kept is spoilt) == (n == 0)


def test_a_fit_leaves_them_out_counts_them_and_changes_nothing(spoilt, tmp_path):
    before = spoilt.copy()
    with pytest.warns(cf.CounterflowWarning, match="7 of 295 cells are left out"):
        cf.CounterFlow.setup_anndata(spoilt, perturbation_key="perturbation", control="control", drop_missing=True, drop_empty_cells=True)
    assert spoilt.n_obs == 295 and spoilt.obs.equals(before.obs) and np.array_equal(spoilt.X, before.X)
    model = cf.CounterFlow(spoilt, anchor="none")
    assert model.trained_on["dropped_cells"] == 7 and model.trained_on["cells"] == 288 and model.adata.n_obs == 288
    model.train(max_steps=1, progress=False)
    assert model.predict(n_cells=3).n_obs == 3 * 7
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model.json").read_text())["training"]["dropped_cells"] == 7
    assert kept_cells(spoilt).n_obs == 288  # by its declaration


def test_the_same_cells_are_read_where_nothing_is_left_out(spoilt):
    """What is fitted is what would be fitted on a file without these cells."""
    setup = {"perturbation_key": "perturbation", "control": "control"}
    clean = kept_cells(spoilt, Setup(**setup, drop_missing=True))
    cf.CounterFlow.setup_anndata(spoilt, **setup, drop_missing=True)
    cf.CounterFlow.setup_anndata(clean, **setup)
    one, other = cf.CounterFlow(spoilt), cf.CounterFlow(clean)
    assert one._screen.fingerprint == other._screen.fingerprint


def test_nothing_is_dropped_unasked(spoilt):
    (problem,) = problems(spoilt, Setup("perturbation", "control"))
    assert "5 cells have no value" in problem and "drop_missing=True" in problem


def test_missing_is_none_nan_and_blank():
    assert missing_values(pd.Series(["a", None, np.nan, "", " ", "nan"])).tolist() == [False, True, True, True, True, False]
    assert missing_values(pd.Series(pd.Categorical(["a", "", None]))).tolist() == [False, True, True]
    assert not missing_values(pd.Series([0, 1, 2])).any()
