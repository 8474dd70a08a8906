"""`predict_effect`: what it says is what predicted cells show, with intervals that know where they come from."""

import warnings

import numpy as np
import pandas as pd
import pytest

from counterflow import ConfigError, CounterFlow, CounterflowWarning, DataError
from counterflow.data.simulate import simulate_screen


@pytest.fixture(scope="module")
def screen():
    small = {"n_genes": 40, "n_perturbations": 6, "n_pairs": 8, "cells_per_condition": 30, "cells_control": 80, "n_cell_types": 2}
    adata = simulate_screen(seed=0, **small).adata
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    return adata


@pytest.fixture(scope="module")
def model(screen):
    model = CounterFlow(screen, space_kwargs={"n_components": 5}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=5, progress=False)
    return model


def parts(model):
    return sorted(model.vocabulary.seen)


def new_pair(model):
    """Two measured parts that were not measured together."""
    names = parts(model)
    together = {spec.parts for spec in model.vocabulary.conditions}
    return next(f"{a}+{b}" for a in names for b in names if a < b and (a, b) not in together)


def test_it_is_the_difference_between_predicted_cells_and_their_controls(model, screen):
    name = parts(model)[0]
    for kind in ("type0", "type1"):
        controls = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == kind)]
        table = model.predict_effect(name, None, adata=controls, n_cells=controls.n_obs, seed=3)
        after = model.predict(controls, name, seed=3).X.mean(0)
        before = np.log1p(1e4 * controls.X.toarray() / controls.X.sum(1)).mean(0)
        assert list(table.columns) == ["condition", "cell_type", "gene", "effect", "support", "target"]
        assert list(table["gene"]) == list(model.genes) and set(table["cell_type"]) == {kind}
        assert table["effect"].to_numpy() == pytest.approx(np.asarray(after - before).ravel(), abs=1e-5)


def test_few_controls_are_drawn_from_as_often_as_it_takes(model, screen):
    name = parts(model)[0]
    few = screen[screen.obs["perturbation"] == "control"][:10]
    seeds = [[model.predict_effect(name, None, adata=few, n_cells=n, seed=seed)["effect"] for seed in range(4)] for n in (10, 1000)]
    scatter = [float(np.std(of_n, axis=0).mean()) for of_n in seeds]
    assert scatter[1] < 0.5 * scatter[0]


def test_every_context_of_every_condition_has_its_rows(model):
    names = [parts(model)[0], new_pair(model)]
    table = model.predict_effect(names)
    assert len(table) == 2 * 2 * len(model.genes)
    assert list(dict.fromkeys(zip(table["condition"], table["cell_type"], strict=True))) == [(n, f"type{i}") for n in names for i in (0, 1)]
    one = model.predict_effect(pd.DataFrame({"perturbation": names, "cell_type": "type1"}))
    pd.testing.assert_frame_equal(one, table[table["cell_type"] == "type1"].reset_index(drop=True))


def test_intervals_grow_with_coverage_and_shrink_with_the_size_of_the_experiment(model):
    name = new_pair(model)
    half = [(t := model.predict_effect(name, **options))["hi"] - t["lo"] for options in ({}, {"interval": 0.5}, {"cells": 10_000})]
    assert (half[0] > half[1]).all() and (half[0] > half[2]).all()
    table = model.predict_effect(name)
    assert ((table["lo"] < table["effect"]) & (table["effect"] < table["hi"])).all()
    assert table["beyond_baseline"].equals((table["baseline_effect"] < table["lo"]) | (table["baseline_effect"] > table["hi"]))
    assert set(table["support"]) == {"components-seen"} and set(table["baseline"]) <= {"no change", "mean effect", "sum of parts"}
    assert table["calibrated_on"].iloc[0] == model.intervals.kinds["combination"].n == 8
    assert set(table["gene"][table["target"]]) == set(name.split("+"))


def test_a_new_pair_is_less_sure_than_a_measured_one(model):
    measured = next("+".join(spec.parts) for spec in model.vocabulary.conditions if len(spec.parts) > 1)
    width = {name: float((t := model.predict_effect(name))["hi"].sub(t["lo"]).mean()) for name in (measured, new_pair(model))}
    assert width[measured] != width[new_pair(model)]
    unknown = model.predict_effect("not measured", on_unknown="mean")
    assert set(unknown["support"]) == {"unknown"} and np.isfinite(unknown["lo"]).all()


def test_where_nothing_could_be_left_out_there_is_no_interval_and_that_is_said(screen):
    only = screen[screen.obs["perturbation"].isin(["control", parts_of(screen)[0]])].copy()
    CounterFlow.setup_anndata(only, perturbation_key="perturbation", control="control")
    model = CounterFlow(only, space_kwargs={"n_components": 5}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=2, progress=False)
    assert model.intervals.certainty("unknown") is None
    with pytest.warns(CounterflowWarning, match="no interval for 1 conditions"):
        table = model.predict_effect("not measured", on_unknown="mean")
    assert table["lo"].isna().all() and table["effect"].notna().all() and (table["calibrated_on"] == 0).all()
    assert not table["beyond_baseline"].any()


def parts_of(adata):
    return sorted(name for name in adata.obs["perturbation"].unique() if "+" not in name and name != "control")


def test_the_control_has_no_interval_and_none_is_missed(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CounterflowWarning)
        table = model.predict_effect("control")
    assert table["lo"].isna().all() and not table["beyond_baseline"].any()


def test_a_saved_model_says_the_same(model, tmp_path):
    name = new_pair(model)
    model.save(tmp_path / "model")
    again = CounterFlow.load(tmp_path / "model")
    kept = model.reference.cells(model.setup, model.genes)[0]
    assert again.intervals.kinds == model.intervals.kinds
    assert [one.n for one in again.trust.values()] == [one.n for one in model.trust.values()]
    if len(kept.cells) == int(model._train_cells.is_control.sum()):
        pd.testing.assert_frame_equal(again.predict_effect(name), model.predict_effect(name))


def test_a_gene_against_the_direction_of_the_screen_is_told(model, monkeypatch):
    name = parts(model)[0]
    effect = float(model.predict_effect(name).query("target")["effect"].mean())
    assert abs(effect) > 0.05
    from counterflow.effects.on_target import OnTarget

    for way, warned in ((-np.sign(effect), True), (np.sign(effect), False)):
        monkeypatch.setattr(model, "on_target", lambda way=way: tuple(OnTarget(f"P{i}", way, 0.01) for i in range(5)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CounterflowWarning)
            model.predict_effect(name)
        assert any("the other way round" in str(one.message) for one in caught) == warned


@pytest.mark.parametrize(
    ("options", "says"),
    [({"interval": 90}, "between 0 and 1"), ({"cells": 0}, "at least 1"), ({"n_cells": 0}, "at least one cell")],
)
def test_what_cannot_be_answered_is_refused(model, options, says):
    with pytest.raises(ConfigError, match=says):
        model.predict_effect(parts(model)[0], **options)


def test_an_unknown_perturbation_is_refused_and_a_model_without_a_rule_has_no_interval(model, screen):
    with pytest.raises(DataError, match="neither seen in training"):
        model.predict_effect("nothing known")
    plain = CounterFlow(screen, anchor="none", space_kwargs={"n_components": 5}, backbone_kwargs={"size": "XS"})
    plain.train(max_steps=2, progress=False)
    with pytest.raises(ConfigError, match="interval=None"):
        plain.predict_effect(parts(model)[0])
    assert "lo" not in plain.predict_effect(parts(model)[0], interval=None)


def test_what_was_found_for_a_condition_is_remembered_until_the_model_is_trained_anew(screen, monkeypatch):
    from counterflow import recentring

    model = CounterFlow(screen, space_kwargs={"n_components": 5}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=2, progress=False)
    calls, find = [], recentring.gene_factors
    monkeypatch.setattr(recentring, "gene_factors", lambda *given: calls.append(1) or find(*given))
    name, other = parts(model)[:2]
    first = model.predict(conditions=name, n_cells=20)
    found = len(calls)
    again = model.predict(conditions=name, n_cells=20)
    assert found > 0 and len(calls) == found and np.array_equal(first.layers["mean"], again.layers["mean"])
    model.predict(conditions=other, n_cells=20)
    assert len(calls) == 2 * found
    model.train(max_steps=3, progress=False)
    model.predict(conditions=name, n_cells=20)
    assert len(calls) == 3 * found


def test_what_is_new_in_a_new_context_takes_no_interval_of_an_easier_kind(model, screen):
    strangers = screen[screen.obs["perturbation"] == "control"].copy()
    strangers.obs["cell_type"] = "type9"
    measured = model.predict_effect(parts(model)[0], adata=strangers)
    assert set(measured["support"]) == {"unseen-context"} and np.isfinite(measured["lo"]).all()
    with pytest.warns(CounterflowWarning, match="no interval for 1 conditions"):
        new = model.predict_effect(new_pair(model), adata=strangers)
    assert set(new["support"]) == {"unseen-context"} and new["lo"].isna().all() and (new["calibrated_on"] == 0).all()
