"""The way of cells along the flow begins at the control cells and ends where predictions are made."""

import numpy as np
import pytest
import torch

from counterflow import ConfigError, CounterFlow, DataError
from counterflow.prediction import solve
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

TINY = {"space_kwargs": {"n_components": 4}, "backbone_kwargs": {"size": "XS"}}


@pytest.fixture
def fit(declared, randomise):
    def fit(**kwargs):
        model = CounterFlow(declared, **TINY | kwargs)
        model.train(max_steps=2, progress=False)
        randomise(model.module)
        return model

    return fit


def end(model, spec, how):
    """States that `predict` decodes, by the code of predictions."""
    cells, _, _ = model._controls(None, "error")
    control = model.space.encode(cells.counts, cells.library)
    after = solve(model.module, control, None, model._ids(spec, cells), model._ids(ConditionSpec(), cells), how)
    correction = model._correction(spec, cells, ["seen"] * len(control), model._origins(), how, calibrated=False)
    return correction.apply(control, after, np.arange(len(control))).numpy()


@pytest.mark.parametrize("kwargs", [{}, {"anchor": "none"}, {"source": "noise"}, {"source": "noise", "anchor": "additive"}], ids=str)
def test_paths_end_where_predictions_are_made(fit, tiny_screen, kwargs):
    model, name = fit(**kwargs), tiny_screen.conditions[0]
    model.trust = {kind: type(trust)(0.5, 0.25) for kind, trust in model.trust.items()}
    paths = model.get_paths(name, n_steps=5)
    control = model.get_latent_representation()[(model.adata.obs["perturbation"] == "control").to_numpy()]
    assert paths.shape == (6, *control.shape)
    np.testing.assert_allclose(paths[-1], end(model, ConditionSpec((name,), (1.0,)), Sampling("midpoint", 5)), atol=2e-5)
    if model.config["source"] == "control":
        np.testing.assert_array_equal(paths[0], control)
    else:
        assert np.abs(paths[0] - control).max() > 0.1


def test_without_trust_in_the_flow_all_cells_go_straight_and_alike(fit, tiny_screen):
    model = fit()
    model.trust = {}
    paths = model.get_paths(tiny_screen.conditions[0], n_cells=10, n_steps=4)
    steps = np.diff(paths, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1, :1], steps.shape), atol=1e-5)
    assert np.abs(steps).max() > 1e-3


def test_fewer_cells_are_a_choice_that_the_seed_makes(fit, tiny_screen):
    model, name = fit(), tiny_screen.conditions[0]
    first, again, other = (model.get_paths(name, n_cells=7, n_steps=1, seed=seed) for seed in (0, 0, 1))
    assert first.shape[1] == 7
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])


def test_paths_refuse_what_has_none(fit, tiny_screen):
    model = fit(anchor="none")
    first, second = tiny_screen.conditions[:2]
    with pytest.raises(ConfigError, match="one condition; 2 were given"):
        model.get_paths([first, second])
    with pytest.raises(DataError, match="neither seen"):
        model.get_paths("nobody")
    with pytest.raises(ConfigError, match="n_steps=0"):
        model.get_paths(first, n_steps=0)
    with pytest.raises(ConfigError, match="genot"):
        fit(source="noise", coupling="genot").get_paths(first)


def test_nothing_random_is_drawn(fit, tiny_screen):
    model = fit()
    before = torch.random.get_rng_state()
    model.get_paths(tiny_screen.conditions[0], n_cells=3, n_steps=1)
    assert torch.equal(before, torch.random.get_rng_state())
