"""What the page says is what the model says; measured cells are those of the condition and the context; nothing is computed twice."""

import anndata
import numpy as np
import pytest

from counterflow import ConfigError, CounterFlow
from counterflow.explore.answers import Explorer
from counterflow.explore.questions import EffectQuestion, RankQuestion


def question(parts, cell_type="type0", **changes):
    given = {"dose": None, "time": None, "levels": (("cell_type", cell_type),), "interval": 0.9, "n_cells": 50}
    return EffectQuestion(tuple(parts), **given | changes)


@pytest.fixture(scope="module")
def explorer(model, screen):
    return Explorer(model, screen)


def test_an_effect_is_that_of_the_model(explorer, model, names):
    answer = explorer.effect(question(names[:1]))
    told = model.predict_effect(names[0]).query("cell_type == 'type0'")
    assert answer.genes["effect"].to_numpy() == pytest.approx(told["effect"].to_numpy(), abs=0.05)
    assert (answer.support, answer.condition) == ("seen", names[0]) and answer.cells.n_obs == 50
    assert set(answer.cells.obs["cell_type"].astype(str)) == {"type0"}
    assert answer.nearest[0].spec.parts == (names[0],) and answer.nearest[0].here


def test_measured_cells_are_those_of_condition_and_context(explorer, screen, names, new_pair):
    here = (screen.obs["perturbation"] == names[0]) & (screen.obs["cell_type"] == "type1")
    answer = explorer.effect(question(names[:1], "type1"))
    assert len(answer.places.measured) == here.sum() and answer.measured_r > 0.5
    fewer = explorer.effect(question(names[:1], "type1", levels=(("cell_type", "type1"), ("batch", "batch0"))))
    assert len(fewer.places.measured) == (here & (screen.obs["batch"] == "batch0")).sum() < here.sum()
    unmeasured = explorer.effect(question(new_pair))
    assert len(unmeasured.places.measured) == 0 and np.isnan(unmeasured.measured_r)


def test_predicted_cells_lie_near_the_measured_ones(explorer, names):
    strongest = max(names, key=lambda name: explorer.effect(question([name])).genes["effect"].abs().sum())
    places = explorer.effect(question([strongest])).places
    to_measured, to_control = (np.linalg.norm(places.predicted.mean(0) - other.mean(0)) for other in (places.measured, places.control))
    assert to_measured < 0.5 * to_control


def test_an_answer_is_computed_once(explorer, model, names, monkeypatch):
    first = explorer.effect(question(names[:1]))
    monkeypatch.setattr(type(model), "predict", lambda *args, **kwargs: pytest.fail("asked again"))
    assert explorer.effect(question(names[:1])) is first


def test_warming_up_asks_in_every_context_and_makes_ready_for_rankings(model, screen, monkeypatch):
    asked, prepared = [], []
    monkeypatch.setattr(Explorer, "effect", lambda self, question: asked.append(question.levels))
    monkeypatch.setattr(type(model), "prepare_ranking", lambda self: prepared.append(self))
    Explorer(model, screen).warm_up()
    assert sorted(asked) == [(("cell_type", "type0"),), (("cell_type", "type1"),)] and prepared == [model]


def test_cells_come_as_a_file(explorer, names, tmp_path):
    (tmp_path / "cells.h5ad").write_bytes(explorer.h5ad(question(names[:1])))
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert cells.shape == (50, 60) and set(cells.layers) == {"counts", "mean"} and set(cells.obs["support"]) == {"seen"}


def test_a_ranking_is_that_of_the_model(explorer, model):
    answer = explorer.rank(RankQuestion(tuple(model.genes[:4]), ("NOTHERE",), "", (), (), (("cell_type", "type1"),), 2, None, None))
    told = model.rank_perturbations(up=model.genes[:4], covariates={"cell_type": "type1"})
    assert list(answer.table["condition"]) == list(told["condition"])
    assert "'NOTHERE'" in answer.remarks[0]


def test_without_kept_controls_those_of_the_file_are_used(screen, names):
    bare = CounterFlow(screen, space_kwargs={"n_components": 4}, backbone_kwargs={"size": "XS"}, keep_controls=0)
    bare.train(max_steps=1, progress=False)
    with pytest.raises(ConfigError, match="keeps no control cells to start from: give a file that has some with --data"):
        Explorer(bare)
    explorer = Explorer(bare, screen)
    answer = explorer.effect(question(names[:1]))
    assert answer.cells.n_obs == 50 and len(answer.places.control)
    assert len(explorer.rank(RankQuestion((), (), names[0], (), (), (), 2, None, None)).table)
