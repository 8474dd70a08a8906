"""`rank_perturbations`: what it says is what `predict_effect` says, of conditions nobody measured, in an order the truth agrees with."""

import copy
import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from counterflow import ConfigError, CounterFlow, CounterflowWarning, DataError
from counterflow.cli import main
from counterflow.data.simulate import simulate_screen
from counterflow.recentring import Trust
from counterflow.types import ConditionSpec

SMALL = {"n_genes": 60, "n_perturbations": 8, "n_pairs": 8, "cells_per_condition": 40, "cells_control": 160, "n_cell_types": 2}


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(seed=3, **SMALL)


@pytest.fixture(scope="module")
def model(screen):
    adata = screen.adata.copy()
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    model = CounterFlow(adata, space_kwargs={"n_components": 6}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=5, progress=False)
    return model


def a_single(model):
    return sorted(model.vocabulary.seen)[0]


def toward_of_predicted(model, table, weights):
    """What `predict_effect` says of the rows of a ranking: weighted mean over genes, mean over contexts."""
    effects = model.predict_effect(list(table["condition"]), None, n_cells=512)
    wide = effects.pivot_table(index="condition", columns="gene", values="effect")
    weights = pd.Series(weights)
    return (wide[weights.index] @ weights / weights.abs().sum()).reindex(table["condition"]).to_numpy()


def test_every_unmeasured_pair_is_ranked_best_first_in_wells(model):
    table = model.rank_perturbations(up=list(model.genes[:5]))
    measured = {"+".join(spec.parts) for spec in model.vocabulary.conditions if len(spec.parts) == 2}
    pairs = {"+".join(pair) for pair in combinations(sorted(model.vocabulary.seen), 2)}
    assert set(table["condition"]) == pairs - measured and set(table["support"]) == {"components-seen"}
    assert table["toward"].is_monotonic_decreasing and list(table["well"][:13]) == [*(f"A{i}" for i in range(1, 13)), "B1"]
    assert len(model.rank_perturbations(up=list(model.genes[:5]), top=3)) == 3


def test_it_says_what_predicted_cells_show(model):
    signature = model.measured_effect(a_single(model))
    table = model.rank_perturbations(signature=signature).iloc[[0, 9, -1]]
    assert table["toward"].to_numpy() == pytest.approx(toward_of_predicted(model, table, signature), abs=0.03)
    assert table["toward"].std() > 0.1


def test_the_flow_counts_as_far_as_it_is_trusted(model, monkeypatch, randomise):
    signature = model.measured_effect(a_single(model))
    monkeypatch.setattr(model, "trust", {})
    plain = model.rank_perturbations(signature=signature).set_index("condition")["toward"]
    monkeypatch.setattr(model, "module", randomise(copy.deepcopy(model.module)))
    assert model.rank_perturbations(signature=signature).set_index("condition")["toward"].equals(plain)  # not trusted: the rule
    monkeypatch.setattr(model, "trust", {"combination": Trust(1.0, 0.0, 9)})
    trusting = model.rank_perturbations(signature=signature)
    shown = trusting.iloc[[0, -1]]
    moved = np.abs(trusting.set_index("condition")["toward"].reindex(plain.index) - plain)
    assert moved.max() > 0.1
    assert shown["toward"].to_numpy() == pytest.approx(toward_of_predicted(model, shown, signature), abs=0.3 * moved.max())


def test_the_truth_agrees(model, screen):
    """Simulated effects of the pairs that were not measured: most of their order is found, and the left-out correlation says so."""
    signature = pd.Series(screen.true_mean(a_single(model)) - screen.true_mean("control"), index=model.genes)
    table = model.rank_perturbations(signature=signature)
    weight = (signature / signature.abs().sum()).to_numpy()
    truth = [(screen.true_mean(name) - screen.true_mean("control")) @ weight for name in table["condition"]]
    assert np.corrcoef(table["toward"], truth)[0, 1] > 0.9
    assert table["left_out_n"].iloc[0] == 8 and table["left_out_r"].iloc[0] > 0.8


def test_the_better_part_is_named(model):
    table = model.rank_perturbations(up=list(model.genes[:5])).set_index("condition")
    alone = table.groupby("best_part")["best_part_toward"].first()
    assert all(row.best_part in name.split("+") for name, row in table.iterrows())
    for name in table.index:
        first, second = (alone.get(part, -np.inf) for part in name.split("+"))
        assert table.loc[name, "best_part_toward"] == max(first, second)


def test_one_context_is_not_another(model):
    signature = model.context_difference({"cell_type": "type0"}, {"cell_type": "type1"})
    here, there = (model.rank_perturbations(signature=signature, covariates={"cell_type": kind}) for kind in ("type0", "type1"))
    joined = here.merge(there, on="condition")
    assert np.abs(joined["toward_x"] - joined["toward_y"]).max() > 0.01
    assert list(signature.index) == list(model.genes) and signature.abs().max() > 0.1
    back = model.context_difference({"cell_type": "type1"}, {"cell_type": "type0"})
    assert back.to_numpy() == pytest.approx(-signature.to_numpy())


def test_parts_that_were_never_alone_are_candidates_themselves(model, monkeypatch):
    name = a_single(model)
    alone = ConditionSpec((name,), (1.0,), 0.0)
    with pytest.raises(DataError, match="nothing is left to propose"):
        model.rank_perturbations(up=[model.genes[0]], most_parts=1)
    fewer = frozenset((spec, level) for spec, level in model.vocabulary.measured if spec != alone)
    monkeypatch.setattr(model, "vocabulary", replace(model.vocabulary, measured=fewer))
    assert list(model.rank_perturbations(up=[model.genes[0]], most_parts=1)["condition"]) == [name]


def test_unknown_genes_are_left_out_and_said_at_the_call(model):
    with pytest.warns(CounterflowWarning, match="1 of the 2 genes") as caught:
        model.rank_perturbations(up=[model.genes[0], "GENE9"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "empty"),
        ({"up": ["G00x"]}, "1 of the 1 genes"),
        ({"up": ["G001"], "down": ["G001"]}, "both rise and fall"),
        ({"up": ["G001"], "signature": {"G001": 1.0}}, "either up and down, or signature"),
        ({"up": ["G001"], "most_parts": 3}, "most_parts=3"),
        ({"up": ["G001"], "top": 0}, "top=0"),
        ({"up": ["G001"], "dose": 2.0}, "without doses"),
        ({"up": ["G001"], "time": 2.0}, "without times"),
        ({"up": ["G001"], "covariates": {"cell_type": "type9"}}, "'type9': did you mean 'type"),
        ({"up": ["G001"], "covariates": {"cell": "type0"}}, "'cell', which setup_anndata did not name: did you mean 'cell_type'"),
    ],
)
def test_what_cannot_be_asked(model, options, words):
    with pytest.raises((ConfigError, DataError), match=words):
        model.rank_perturbations(**options)


def test_effects_that_were_not_measured_are_no_signature(model):
    with pytest.raises(DataError, match="was not measured in training"):
        model.measured_effect("+".join(sorted(model.vocabulary.seen)[:3]))
    with pytest.raises(DataError, match="was not measured in the cells of"):
        model.measured_effect(a_single(model), {"cell_type": "type9"})


def test_doses_and_times_are_those_asked_for():
    adata = simulate_screen(**SMALL | {"n_pairs": 2}, doses=(0.5, 2.0), times=(2.0, 6.0), n_compounds=3).adata
    keys = {"dose_key": "dose", "time_key": "time"}
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", **keys)
    model = CounterFlow(adata, space_kwargs={"n_components": 4}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=1, progress=False)
    assert model.rank_perturbations(up=["G001"])["condition"].str.endswith("time 6").all()
    asked = model.rank_perturbations(up=["G001"], dose=1.5, time=4.0)["condition"]
    assert asked.str.contains(r"dose 1\.5\+1\.5 time 4").any() and asked.str.contains(r"^[^+]+ dose 1\.5 time 4").any()
    known = model.rule.genes.measured
    name = next(spec.parts[0] for spec in known.specs if len({other.doses for other in known.specs if other.parts == spec.parts}) > 1)
    latest = known.effect[known.spec_of == known.specs.index(ConditionSpec((name,), (2.0,), 6.0))][0]
    assert model.measured_effect(name).to_numpy() == pytest.approx(latest)
    early = pd.DataFrame({"perturbation": [name], "dose": [0.5], "time": [2.0]})
    assert np.abs(model.measured_effect(early).to_numpy() - latest).max() > 0.01
    with pytest.raises(ConfigError, match="dose=0: must be a number above 0"):
        model.rank_perturbations(up=["G001"], dose=0.0)


def test_a_model_without_measured_effects_cannot_rank(model, monkeypatch):
    monkeypatch.setattr(model, "rule", None)
    with pytest.raises(ConfigError, match="anchor='additive'"):
        model.rank_perturbations(up=["G001"])


def test_the_command_line_says_and_writes_the_same(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    (tmp_path / "up.txt").write_text("\n".join(model.genes[:3]) + "\n")
    plate = tmp_path / "plate.csv"
    arguments = ["rank", str(tmp_path / "model"), "--down", f"{model.genes[4]}, {model.genes[5]}", "--covariates.cell_type", "type1"]
    assert main([*arguments, "--up", str(tmp_path / "up.txt"), "--out", str(plate)]) == 0
    wanted = model.rank_perturbations(up=model.genes[:3], down=model.genes[4:6], covariates={"cell_type": "type1"})
    written = pd.read_csv(plate)
    assert list(written.columns) == list(wanted.columns) and list(written["condition"]) == list(wanted["condition"])
    assert written["toward"].to_numpy() == pytest.approx(wanted["toward"].to_numpy(), rel=1e-4)
    assert f"wrote {len(wanted)} rows" in capsys.readouterr().out
    assert main(["rank", str(tmp_path / "model"), "--like", a_single(model), "--top", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say where the cells shall go"),
        (["--up", "G001", "--like", "G001"], "say where the cells shall go"),
        (["--up", "nothere.txt"], "cannot read the genes in 'nothere.txt': No such file"),
        (["--up", "G001", "--out", "plate.xlsx"], "ends in .csv"),
        (["--up", "G001", "--show", "0"], "--show 0"),
        (["--like", "G0x"], "'G0x' was not measured in training"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(model, tmp_path, capsys, arguments, words):
    model.save(tmp_path / "model")
    assert main(["rank", str(tmp_path / "model"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not list(tmp_path.glob("*.csv"))
