"""Densities, abduction and random paths, asked of a fitted model."""

import numpy as np
import pandas as pd
import pytest
import torch

from counterflow import ConfigError, CounterFlow, DataError
from counterflow.flow.density import log_normal
from counterflow.flow.solvers import dopri5
from counterflow.prediction import solve
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

SETUP = {"perturbation_key": "perturbation", "control": "control"}


def fit(adata, **kwargs):
    CounterFlow.setup_anndata(adata, **SETUP)
    kwargs = {"space_kwargs": {"n_components": 6}, "backbone_kwargs": {"size": "XS"}, "encoder_kwargs": {"width": 16}} | kwargs
    model = CounterFlow(adata, **kwargs)
    model.train(max_steps=3, batch_size=64, set_size=16, progress=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():  # more in the backbone would oscillate in time, and take minutes to solve
            weight.normal_(0, 1.0 if name.startswith("encoder") else 0.06, generator=generator)
    return model


@pytest.fixture(scope="module")
def data(tiny_screen):
    return tiny_screen.adata.copy()


@pytest.fixture(scope="module")
def single(tiny_screen):
    return tiny_screen.conditions[0]


@pytest.fixture(scope="module")
def controls(data):
    return data[data.obs["perturbation"] == "control"][:20].copy()


@pytest.fixture(scope="module")
def model(data):
    """From noise, every weight far from its start."""
    return fit(data, source="noise")


def counts(cells):
    return cells.layers["counts"].toarray()


# ------------------------------------------------------------------------------------------------------------ abduction


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_abduction_under_what_was_done_returns_the_cell(data, controls, single, prediction):
    model = fit(data, source="noise", prediction=prediction)
    state = model.space.encode(controls.X, np.asarray(controls.X.sum(1)).ravel())

    def ids(spec):
        return model.vocabulary.ids([spec] * len(state), {})

    def moved(spec, **how):
        end = solve(model.module, state, None, ids(spec), ids(ConditionSpec()), Sampling(mode="abduct", **how))
        return float((end - state).square().mean().sqrt())

    assert moved(ConditionSpec(), solver="dopri5") < 1e-3
    assert moved(ConditionSpec((single,), (1.0,)), solver="dopri5") > 1e-2
    assert moved(ConditionSpec(), guidance=3.0, guidance_kind="classifier_free", solver="dopri5") > 1e-2  # on the way there only


def test_a_noise_source_abducts_by_default_and_samples_when_asked(model, controls, single):
    default, abducted = (model.predict(controls, single, **how) for how in ({}, {"mode": "abduct"}))
    assert np.array_equal(counts(default), counts(abducted))
    assert default.uns["counterflow"]["sampling"]["mode"] == "abduct"
    one, again, other = (model.predict(controls, single, mode="sample", seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.layers["mean"], again.layers["mean"])
    assert np.abs(one.layers["mean"] - other.layers["mean"]).max() > 1e-2
    assert np.abs(one.layers["mean"] - abducted.layers["mean"]).max() > 1e-2
    assert one.uns["counterflow"]["sampling"]["mode"] == "sample"
    alone = model.predict(controls[7], single, mode="sample")
    assert np.array_equal(alone.layers["mean"], one[7].layers["mean"])  # the noise is that of the cell


def test_random_paths_belong_to_the_cell(model, controls, single):
    one = model.predict(controls, single, solver="sde")
    assert one.uns["counterflow"]["sampling"]["mode"] == "sample"
    assert np.array_equal(model.predict(controls[7], single, solver="sde").layers["mean"], one[7].layers["mean"])
    plain = model.predict(controls, single, mode="sample", n_steps=20)
    assert np.abs(one.layers["mean"] - plain.layers["mean"]).max() > 1e-2
    assert model.generate(single, 5, solver="sde").shape == (5, 30)


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        ({}, {"mode": "abduct"}, "starts at the control cells"),
        ({}, {"mode": "sample"}, "starts at the control cells"),
        ({}, {"solver": "sde"}, "source='noise'"),
        ({"source": "noise"}, {"mode": "abduckt"}, "did you mean 'abduct'"),
        ({"source": "noise"}, {"mode": "abduct", "solver": "sde"}, "cannot"),
        ({"source": "noise", "coupling": "genot"}, {"mode": "abduct"}, "genot"),
    ],
)
def test_what_does_not_go_together_is_refused(data, controls, single, options, how, message):
    with pytest.raises(ConfigError, match=message):
        fit(data, **options).predict(controls, single, **how)


# -------------------------------------------------------------------------------------------------------------- density


def by_hand(velocity, state):
    """Change of variables with the Jacobian of the whole map from data to noise, by differences."""
    n, step = len(state), 1e-2
    around = torch.cat([state[None], state + step * torch.eye(n), state - step * torch.eye(n)])
    with torch.no_grad():
        z = dopri5(velocity, around, torch.tensor([1.0, 0.0]), rtol=1e-6, atol=1e-6).double()
    jacobian = (z[1 : n + 1] - z[n + 1 :]) / (2 * step)
    return float(log_normal(z[:1]) + jacobian.slogdet().logabsdet)


def test_log_prob_is_the_change_of_variables(model, controls, single):
    found = model.log_prob(controls[:2], single, tolerance=1e-6)
    ids = model.vocabulary.ids([ConditionSpec((single,), (1.0,))], {})
    states = model.space.encode(controls.X[:2], np.asarray(controls.X[:2].sum(1)).ravel())
    assert np.abs(found - [by_hand(model.module.velocity(ids), state) for state in states]).max() < 0.02
    assert np.abs(found - log_normal(states).numpy()).max() > 0.1


def test_every_cell_under_its_own_condition_or_under_one(model, data, single):
    rows = np.flatnonzero(data.obs["perturbation"].isin(["control", single]))[:40]
    some = data[rows].copy()
    own = model.log_prob(some)
    assert own.shape == (40,) and np.isfinite(own).all()
    is_control = (some.obs["perturbation"] == "control").to_numpy()
    under = {name: model.log_prob(some, name) for name in ("control", single)}
    assert np.allclose(own, np.where(is_control, under["control"], under[single]), atol=0.1)
    assert np.abs(under["control"] - under[single]).max() > 0.1
    assert model.log_prob().shape == (data.n_obs,)


def test_an_estimated_trace_is_seeded_and_near(model, controls, single):
    exact = model.log_prob(controls, single)
    draws = np.stack([model.log_prob(controls, single, trace="hutchinson", seed=seed) for seed in range(20)])
    assert np.array_equal(draws[0], model.log_prob(controls, single, trace="hutchinson", seed=0))
    assert draws.std(0).min() > 1e-3
    assert abs((draws.mean(0) - exact).mean()) < 4 * draws.mean(1).std() / 20**0.5


def test_an_anchor_moves_the_density_with_the_cells(data, controls, single):
    """Under an additive anchor the flow lives around what the rule explains."""
    model = fit(data, source="noise", anchor="additive")
    spec = ConditionSpec((single,), (1.0,))
    before = model.log_prob(controls, single)
    effect = model.rule.states.anchor(spec)
    assert np.abs(effect).max() > 0.01
    model.rule.states.anchor = lambda spec: 0 * effect  # what the flow alone says
    assert np.abs(model.log_prob(controls, single) - before).max() > 1e-2


def test_what_has_no_density_is_refused(data, model, controls, single):
    with pytest.raises(ConfigError, match="source='noise'"):
        fit(data).log_prob(controls, single)
    with pytest.raises(ConfigError, match="coupling='independent'"):
        fit(data, source="noise", coupling="genot").log_prob(controls, single)
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        model.log_prob(controls, single, trace="exakt")
    with pytest.raises(ConfigError, match="tolerance"):
        model.log_prob(controls, single, tolerance=0)
    with pytest.raises(ConfigError, match="one condition"):
        model.log_prob(controls, pd.DataFrame({"perturbation": [single, "control"]}))
    with pytest.raises(DataError, match="no column 'perturbation'"):
        nameless = controls.copy()
        del nameless.obs["perturbation"]
        model.log_prob(nameless)
    with pytest.raises(DataError, match="neither seen in training"):
        strange = controls.copy()
        strange.obs["perturbation"] = "G999"
        model.log_prob(strange)
