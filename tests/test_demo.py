"""The demonstration, on a small screen and with a short training; whether the model wins is for benchmarks/simulated_truth.py."""

import json

import anndata
import numpy as np
import pytest

from counterflow import CounterFlow, demo
from counterflow.data.simulate import SMALL, simulate_screen


@pytest.fixture
def small(monkeypatch):
    def fit(adata, *, seed, progress=False):
        model = CounterFlow(adata, seed=seed, backbone_kwargs={"size": "XS"}, space_kwargs={"n_components": 10})
        model.train(max_steps=20, batch_size=64, set_size=16, progress=progress)
        return model

    monkeypatch.setattr(
        demo, "simulate_screen", lambda seed, interaction, **_: simulate_screen(**SMALL, seed=seed, interaction=interaction)
    )
    monkeypatch.setattr(demo, "fit", fit)


def test_demo_writes_cells_a_picture_and_a_table(small, tmp_path, capsys):
    result = demo.run(tmp_path / "out", seed=1, progress=True)
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == result
    assert list(result["rmse_to_truth"]) == ["control", "mean", "additive", "counterflow"]
    assert sum(result["pairs_where_best"].values()) == result["hidden_pairs"] == 3
    cells = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    assert set(cells.obs["perturbation"]) == {result["pair"]} and set(cells.obs["support"]) == {"components-seen"}
    assert (tmp_path / "out" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert set(result["seconds"]) == {"simulate", "fit", "predict", "write"}
    printed = capsys.readouterr().out
    assert "additive" in printed and f"{result['rmse_to_truth']['counterflow']:.4f}" in printed


def test_quiet_says_nothing(small, tmp_path, capsys):
    demo.run(tmp_path / "out", progress=False)
    assert capsys.readouterr().out == ""


def test_hidden_pairs_are_nowhere_in_training():
    screen, hidden = demo.screen_with_hidden_pairs(3)
    obs = screen.adata.obs
    trained = set(obs["perturbation"][obs["split"] == "train"])
    assert len(hidden) >= 20 and not trained & set(hidden)
    assert {part for pair in hidden for part in pair.split("+")} <= trained


def test_the_error_is_to_the_truth():
    screen = simulate_screen(**SMALL, seed=2)
    pairs = [name for name in screen.conditions if "+" in name]

    class Oracle:
        offset = 0.0

        def predict(self, adata, condition):
            truth = screen.true_mean(condition) + self.offset
            return anndata.AnnData(np.tile(truth, (3, 1)))

    shifted = Oracle()
    shifted.offset = 0.25
    errors = demo.errors_to_truth(screen, pairs, {"oracle": Oracle(), "shifted": shifted})
    np.testing.assert_allclose(errors["oracle"], 0, atol=1e-6)
    np.testing.assert_allclose(errors["shifted"], 0.25, atol=1e-6)
    assert list(errors.index) == pairs
