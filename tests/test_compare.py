"""`compare` with a stand-in for the model: what is trained, kept, resumed and reported."""

import json

import anndata
import numpy as np
import pytest
import torch

from counterflow import compare as module
from counterflow.budget import width_for
from counterflow.compare import _with_split
from counterflow.data.schema import UNS_KEY, Setup, declare
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.errors import ConfigError, DataError
from counterflow.evaluate.baselines import BASELINES
from counterflow.model import CounterFlow

FAST = {"metrics": ("pearson_delta", "mse"), "n_halvings": 1, "progress": False}


class Double:
    """An additive rule under the face of a model."""

    trained: list[tuple[str, int, int]] = []

    def __init__(self, adata, *, backbone, space, seed, **options):
        self.adata, self.name, self.seed = adata, f"{backbone}/{space}", seed
        self.module = torch.nn.ModuleDict({"backbone": torch.nn.Linear(3, 2)})
        self.module.backbone = self.module["backbone"]

    def train(self, max_steps, max_seconds, **options):
        self.n_steps_trained = max_steps or round(10 * max_seconds)
        if self.name == "ssm/raw":
            raise DataError("the loss became nan")
        Double.trained.append((self.name, self.seed, max_steps))
        getattr(Double, "look", len)(self.adata)
        self.rule = BASELINES["additive"]()
        self.rule.train(self.adata)

    def audit(self, adata, subset, on_unknown):
        return "leak audit passed: rule"

    def predict(self, adata, conditions, on_unknown):
        assert on_unknown == "mean"
        return self.rule.predict(adata, conditions)


@pytest.fixture
def double(monkeypatch):
    Double.trained = []
    monkeypatch.setattr(module, "CounterFlow", Double)
    monkeypatch.setattr(module, "function_evaluations", lambda model: 20)
    monkeypatch.setattr(module, "applicable", lambda adata: ["control", "mean", "additive"])  # the others are tested elsewhere
    monkeypatch.setattr(module, "write_report", lambda table, file, title: file.write_text(title * 9))
    return Double


@pytest.fixture(scope="module")
def adata():
    adata = simulate_screen(**SMALL | {"n_cell_types": 1, "cells_per_condition": 16}).adata
    declare(adata, Setup("perturbation", "control"))
    return adata


def test_every_model_and_seed_is_trained_once_under_one_budget(double, adata, tmp_path):
    table = module.compare(adata, ["mlp/pca", "dit/raw"], split="unseen_combination", seeds=2, budget_steps=7, out=tmp_path, **FAST)
    assert sorted(double.trained) == sorted((name, seed, 7) for name in ("mlp/pca", "dit/raw") for seed in (0, 1))
    assert table.models == ["mlp/pca", "dit/raw"]
    assert {"control", "mean", "additive"} <= set(table.baselines) and "split_half" in set(table.rows["method"])
    wide = table.per_condition("mse")
    np.testing.assert_allclose(wide["mlp/pca"], wide["additive"], rtol=1e-5)  # the double is the additive rule
    assert len(table.costs) == 4 and {"train_cpu_s", "parameters", "peak_memory_mb", "function_evaluations"} <= set(table.costs)
    for file in ("table.csv", "summary.md", "summary.json", "report.html", "split.json"):
        assert (tmp_path / file).stat().st_size > 100
    assert "7 optimiser steps" in (tmp_path / "summary.md").read_text()
    assert not {"counterflow_split", "split"} & set(adata.obs) and adata.uns[UNS_KEY]["split_key"] is None


def test_nothing_finished_is_done_again(double, adata, tmp_path):
    arguments = {"split": "unseen_combination", "budget_steps": 5, "out": tmp_path, **FAST}
    first = module.compare(adata, ["mlp/pca", "dit/raw"], **arguments)
    (tmp_path / "rows" / "dit-raw-seed0" / "done").unlink()  # as if it had been killed while this was written
    double.trained = []
    again = module.compare(adata, ["mlp/pca", "dit/raw"], **arguments)
    assert double.trained == [("dit/raw", 0, 5)]
    np.testing.assert_allclose(again.rows["value"], first.rows["value"], rtol=1e-5)
    double.trained = []
    module.compare(adata, ["mlp/pca", "dit/raw", "set/raw"], **arguments)
    assert double.trained == [("set/raw", 0, 5)]  # a model more is no other comparison


def test_another_comparison_in_the_same_directory_is_refused(double, adata, tmp_path):
    module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=5, out=tmp_path, **FAST)
    with pytest.raises(ConfigError, match="another comparison.*budget"):
        module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=6, out=tmp_path, **FAST)
    with pytest.raises(ConfigError, match="another comparison.*named"):  # old and new rows would not meet
        module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=5, out=tmp_path, dataset="norman", **FAST)
    module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=6, out=tmp_path, resume=False, **FAST)
    assert [steps for *_, steps in double.trained] == [5, 6]
    assert json.loads((tmp_path / "compare.json").read_text())["budget"]["steps"] == 6


def test_a_model_that_fails_is_named_and_the_others_go_on(double, adata, tmp_path):
    table = module.compare(adata, ["ssm/raw", "mlp/pca"], split="unseen_combination", budget_steps=5, out=tmp_path, **FAST)
    assert table.models == ["mlp/pca"]
    assert any("ssm/raw" in note and "nan" in note for note in table.notes)


def test_a_budget_of_seconds_is_handed_on_and_the_steps_it_allowed_are_recorded(double, adata, tmp_path):
    table = module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_seconds=3.0, out=tmp_path, **FAST)
    assert double.trained == [("mlp/pca", 0, None)] and table.costs["steps"].tolist() == [30]
    assert "3 processor seconds" in table.notes[0]


def test_equal_parameters_set_the_width_of_every_backbone(adata, tmp_path):
    table = module.compare(
        adata,
        ["mlp/pca", "dit/pca"],
        split="unseen_combination",
        budget_steps=1,
        budget_parameters=60_000,
        out=tmp_path,
        train_options={"batch_size": 8},
        model_options={"space_kwargs": {"n_components": 5}},
        **FAST,
    )
    assert (table.costs["backbone_parameters"] - 60_000).abs().max() < 15_000  # widths come in steps of 8
    assert "60,000 parameters" in table.notes[0]
    with pytest.raises(ConfigError, match="takes no width"):
        width_for(1000, CounterFlow(_with_split(adata, "lopo")[0], backbone=Narrow))


class Narrow(torch.nn.Module):
    """A backbone of one size."""

    def __init__(self, state_shape, condition_dim):
        super().__init__()
        self.layer = torch.nn.Linear(*state_shape, *state_shape)

    def forward(self, x, t, condition):
        return self.layer(x)


def test_a_learning_curve_trains_on_shares_of_the_training_conditions(double, adata, tmp_path):
    table = module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=5, learning_curve=(0.3, 0.6), out=tmp_path, **FAST)
    curve = table.learning_curve
    assert set(curve["share"]) == {0.3, 0.6, 1.0} and {"mlp/pca", "additive", "split_half"} <= set(curve["method"])
    of_model = curve[(curve["method"] == "mlp/pca") & (curve["metric"] == "mse")].sort_values("conditions")
    assert of_model["conditions"].is_monotonic_increasing and of_model["conditions"].nunique() == 3
    assert of_model["value"].iloc[0] > of_model["value"].iloc[-1]  # singles that were not met cannot be added up
    ceiling = curve[(curve["method"] == "split_half") & (curve["metric"] == "mse")]["value"]
    assert ceiling.nunique() == 1  # the same held-out conditions, whatever is trained on
    assert set(table.rows["method"]) == set(module.Table.load(tmp_path).rows["method"]) and len(table.costs) == 1
    assert len(module.Table.load(tmp_path).learning_curve) == len(curve)


def test_a_share_is_measured_with_the_same_stick_and_watches_none_of_the_rest(double, adata, tmp_path):
    fast = FAST | {"metrics": ("pearson_delta_pertref", "energy")}
    seen = []
    double.look = staticmethod(lambda part: seen.append(part.obs[["counterflow_split", "perturbation"]].copy()))
    table = module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=5, learning_curve=(0.3,), out=tmp_path, **fast)
    del double.look
    curve = table.learning_curve
    for method in ("control", "split_half"):  # these learn nothing, so nothing may change for them
        for metric in fast["metrics"]:
            assert curve["value"][(curve["method"] == method) & (curve["metric"] == metric)].nunique() == 1, (method, metric)
    whole, part = (set(frame["perturbation"][frame["counterflow_split"] != "test"]) for frame in seen)
    assert part < whole  # what is not trained on is not there as validation either
    assert set(seen[1]["counterflow_split"]) == {"train", "test"} or "val" in set(seen[0]["counterflow_split"])


def test_models_of_fewer_genes_and_the_rules_are_scored_on_the_same_genes(adata, tmp_path):
    tiny = {"backbone_kwargs": {"width": 16, "depth": 1}, "space_kwargs": {"n_components": 5}, "n_top_genes": 12}
    arguments = {"split": "unseen_combination", "budget_steps": 2, "train_options": {"batch_size": 16}}
    table = module.compare(adata, ["mlp/pca"], out=tmp_path, model_options=tiny, **arguments, **FAST)
    scored = [note for note in table.notes if note.startswith("Scored on")]
    assert len(scored) == 1 and f"of {adata.n_vars} genes" in scored[0]
    whole = module.compare(adata, [], out=tmp_path / "whole", **arguments, **FAST)
    assert not np.allclose(table.per_condition("mse")["control"], whole.per_condition("mse")["control"])
    with pytest.raises(ConfigError, match="another comparison.*genes"):
        module.compare(adata, ["mlp/pca"], out=tmp_path, model_options=tiny | {"n_top_genes": 20}, **arguments, **FAST)


def test_the_same_split_file_serves_again(double, adata, tmp_path):
    module.compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=5, out=tmp_path / "one", **FAST)
    module.compare(adata, ["mlp/pca"], split=tmp_path / "one" / "split.json", budget_steps=5, out=tmp_path / "two", **FAST)
    assert (tmp_path / "one" / "table.csv").read_text() == (tmp_path / "two" / "table.csv").read_text()


def test_errors_say_what_to_do(double, adata, tmp_path):
    with pytest.raises(ConfigError, match="budget_parameters=0"):
        module.compare(adata, ["mlp/pca"], budget_parameters=0, out=tmp_path / "none")
    with pytest.raises(ConfigError, match="not both"):
        module.compare(adata, ["mlp/pca"], budget_steps=1, budget_seconds=1, out=tmp_path)
    with pytest.raises(ConfigError, match="no backbone 'mpl'"):
        module.compare(adata, ["mpl/pca"], split="lopo", out=tmp_path / "none")
    with pytest.raises(ConfigError, match="no space is called 'rae'"):
        module.compare(adata, ["mlp/rae"], split="lopo", out=tmp_path / "none")
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="learning_curve"):
            module.compare(adata, ["mlp/pca"], split="lopo", learning_curve=(share,), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="backbone/space"):
        module.compare(adata, ["mlp"], split="lopo", out=tmp_path)
    with pytest.raises(ConfigError, match="unseen_combination"):
        module.compare(adata, ["mlp/pca"], split="unseen_combinations", out=tmp_path)
    with pytest.raises(ConfigError, match="nothing is held out"):
        module.compare(adata, ["mlp/pca"], out=tmp_path)


def test_a_cell_in_two_sets_stops_the_comparison_before_anything_is_trained(double, adata, tmp_path):
    pair, single = (next(name for name in adata.obs["perturbation"] if name != "control" and ("+" in name) == two) for two in (True, False))
    copies = adata[adata.obs["perturbation"] == single][:3].copy()
    copies.obs_names = ["x", "y", "z"]
    twice = anndata.concat([adata, copies], uns_merge="first")
    twice.obs["set"] = np.where((twice.obs["perturbation"] == pair) | twice.obs_names.isin(["x", "y", "z"]), "test", "train")
    declare(twice, Setup("perturbation", "control", split_key="set"))
    with pytest.raises(DataError, match="3 cells sit in two sets"):
        module.compare(twice, ["mlp/pca"], budget_steps=1, out=tmp_path / "out", **FAST)
    assert not double.trained and not (tmp_path / "out").exists()


def test_one_real_model_end_to_end(adata, tmp_path):
    tiny = {"backbone_kwargs": {"width": 16, "depth": 1}, "space_kwargs": {"n_components": 5}}
    table = module.compare(
        adata,
        ["mlp/pca"],
        split="unseen_combination",
        budget_steps=3,
        out=tmp_path,
        model_options=tiny,
        train_options={"batch_size": 32},
        **FAST,
    )
    assert np.isfinite(table.per_condition("mse")["mlp/pca"]).all()
    assert {"additive+ct", "matching_mean"} <= set(table.baselines)
    assert any(note.startswith("mlp/pca: leak audit passed: features, space, rule, weights, recipe") for note in table.notes)
    report = (tmp_path / "report.html").read_text()
    assert "<svg" in report and "How sure the predictions are" in report
    assert set(table.coverage["method"]) == {"mlp/pca"} and set(table.coverage["condition"]) == set(table.rows["condition"])
    assert table.costs["function_evaluations"].tolist() == [10]
