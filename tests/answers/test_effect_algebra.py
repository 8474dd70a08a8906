"""Of a combination, the flow may read the parts one by one: the sum of what each alone does."""

import numpy as np
import pytest
import torch

from counterflow import ConfigError, CounterFlow
from counterflow.prediction import displaced
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec


@pytest.fixture
def model(declared, randomise):
    model = CounterFlow(declared, anchor="none", backbone_kwargs={"size": "XS"}, space_kwargs={"n_components": 3})
    model.train(max_steps=2, progress=False)
    randomise(model.module)
    return model


def moved(model, name, combine):
    screen = model._screen.rows(np.flatnonzero(model._screen.is_control)[:20])
    states = model.space.encode(screen.counts, screen.library)
    spec = ConditionSpec(tuple(name.split("+")), (1.0,) * len(name.split("+")), 0.0)
    ids, factual = model._ids(spec, screen), model._ids(ConditionSpec(), screen)
    return displaced(model.module, states, screen, ids, factual, Sampling("euler", 1, combine=combine))


def test_one_step_of_a_pair_is_the_sum_of_its_parts_less_the_control(model):
    a, b = model.vocabulary.entities[:2]
    parts = moved(model, a, "encoder") + moved(model, b, "encoder")
    screen = model._screen.rows(np.flatnonzero(model._screen.is_control)[:20])
    states = model.space.encode(screen.counts, screen.library)
    control = displaced(model.module, states, screen, *[model._ids(ConditionSpec(), screen)] * 2, Sampling("euler", 1))
    pair = moved(model, f"{a}+{b}", "algebra")
    torch.testing.assert_close(pair, parts - control, atol=1e-5, rtol=1e-4)
    assert (pair - moved(model, f"{a}+{b}", "encoder")).abs().max() > 1e-3  # the encoder says something else
    torch.testing.assert_close(moved(model, a, "algebra"), moved(model, a, "encoder"))


def test_it_is_an_option_of_predict_and_another_name_is_refused(model):
    a, b = model.vocabulary.entities[:2]
    summed = model.predict(conditions=f"{a}+{b}", n_cells=10, combine="algebra")
    assert summed.uns["counterflow"]["sampling"]["combine"] == "algebra"
    assert not np.array_equal(summed.layers["mean"], model.predict(conditions=f"{a}+{b}", n_cells=10).layers["mean"])
    with pytest.raises(ConfigError, match="combine='sum' is unknown"):
        model.predict(conditions=f"{a}+{b}", combine="sum")
