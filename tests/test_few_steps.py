"""Reflow and mean velocities, from Python to the saved model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from counterflow import ConfigError, CounterFlow
from counterflow.backbones import BACKBONES
from counterflow.fitting import states_of, training_steps
from counterflow.module import FlowModule
from counterflow.nn.embed import TimeEmbedding
from counterflow.prediction import solve
from counterflow.reflow import Reflow
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

SETUP = {"perturbation_key": "perturbation", "control": "control"}
TINY = {"space_kwargs": {"n_components": 6}, "backbone_kwargs": {"width": 16, "depth": 1, "n_heads": 2}, "encoder_kwargs": {"width": 16}}


def fit(adata, train=None, setup=SETUP, **kwargs):
    CounterFlow.setup_anndata(adata, **setup)
    model = CounterFlow(adata, **TINY | kwargs)
    model.train(**{"max_steps": 20, "batch_size": 64, "set_size": 16, "progress": False} | (train or {}))
    return model


def weights(model):
    return torch.cat([value.flatten() for value in model.module.state_dict().values()])


@pytest.fixture
def data(tiny_screen):
    return tiny_screen.adata.copy()


@pytest.mark.parametrize("source", ["control", "noise"])
@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"image_dit"}))
def test_mean_velocities_train_predict_save_and_load(screen_for, asked_for, tiny_screen, tmp_path, backbone, source):
    data, setup = screen_for(backbone)
    model = fit(data, {"max_steps": 4}, setup, backbone=backbone, source=source, objective="meanflow", anchor="none")
    assert np.isfinite([row["train_loss"] for row in model.history]).all()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.normal_(0, 0.2, generator=generator)
    single = asked_for(backbone, tiny_screen.conditions[0])
    one, two, plain = (
        model.predict(conditions=single, n_cells=20, n_steps=n, solver=s) for n, s in ((None, None), (2, None), (2, "midpoint"))
    )
    assert (one.uns["counterflow"]["sampling"]["solver"], one.uns["counterflow"]["sampling"]["n_steps"]) == ("jump", 1)
    assert all(np.abs(one.layers["mean"] - other.layers["mean"]).max() > 1e-4 for other in (two, plain))
    model.save(tmp_path / "model")
    again = CounterFlow.load(tmp_path / "model").predict(conditions=single, n_cells=20)
    assert np.array_equal(again.layers["mean"], one.layers["mean"])
    assert model.generate(single, 5).n_obs == 5


def test_mean_velocities_in_bfloat16_and_in_chunks(data, monkeypatch):
    """Chunks change nothing but the memory."""
    model = fit(data, {"max_steps": 3, "precision": "bf16-mixed"}, objective="meanflow")
    assert model.predict(conditions="control", n_cells=5).n_obs == 5
    whole = weights(fit(data, {"max_steps": 3}, objective="meanflow"))
    monkeypatch.setattr("counterflow.memory.MOST_KEPT", 50_000)
    assert torch.allclose(weights(fit(data, {"max_steps": 3}, objective="meanflow")), whole, atol=1e-5)


def test_a_single_jump_evaluates_the_network_once_and_looks_all_the_way_ahead(data, monkeypatch):
    model = fit(data, {"max_steps": 1}, objective="meanflow")
    asked = []
    forward = model.module.backbone.forward
    monkeypatch.setattr(model.module.backbone, "forward", lambda x, t, c: asked.append((t, c)) or forward(x, t, c))
    state, ids = torch.zeros(3, 6), model.vocabulary.ids([ConditionSpec()] * 3, {})
    solve(model.module, state, None, ids, ids, Sampling())
    (t, condition), one = asked[0], model.module.span(torch.ones(1))
    assert len(asked) == 1 and (t == 0).all()
    assert torch.allclose(condition.tokens[:, -1], one.expand(3, -1))


def test_guidance_acts_on_jumps(data, tiny_screen):
    model = fit(data, {"max_steps": 30}, objective="meanflow", anchor="none")
    single = tiny_screen.conditions[0]
    weak, strong = (model.predict(conditions=single, n_cells=30, guidance=w).layers["mean"] for w in (1.0, 3.0))
    assert np.abs(weak - strong).max() > 1e-3


def test_what_does_not_go_with_mean_velocities_is_refused(data):
    CounterFlow.setup_anndata(data, **SETUP)
    for options, message in [
        ({"objective": "meanfow"}, "did you mean 'meanflow'"),
        ({"objective": "meanflow", "prediction": "x"}, "prediction='v'"),
        ({"objective": "meanflow", "mmd_weight": 0.1}, "no mmd_weight"),
    ]:
        with pytest.raises(ConfigError, match=message):
            CounterFlow(data, **TINY | options)
    model = fit(data, {"max_steps": 1})
    with pytest.raises(ConfigError, match="objective='meanflow'"):
        model.predict(solver="jump")
    model = fit(data, {"max_steps": 1}, objective="meanflow", source="noise")
    with pytest.raises(ConfigError, match="goes back along"):
        model.predict(mode="abduct")
    assert model.predict(mode="abduct", solver="midpoint", n_cells=3).n_obs


def test_the_scale_of_time_is_an_option_and_is_saved(data, tiny_screen, tmp_path):
    CounterFlow.setup_anndata(data, **SETUP)

    def scales(model):
        return {part.time_scale for part in model.module.modules() if isinstance(part, TimeEmbedding)}

    for options, expected in [({}, 1000.0), ({"time_scale": 30.0}, 30.0), ({"objective": "meanflow"}, 1.0),
                              ({"objective": "meanflow", "time_scale": 5}, 5)]:  # fmt: skip
        assert scales(CounterFlow(data, **TINY | options)) == {expected}
    model = fit(data, time_scale=2.0)
    before = model.predict(conditions=tiny_screen.conditions[0], n_cells=10)
    model.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model")
    assert scales(loaded) == {2.0}
    assert np.array_equal(loaded.predict(conditions=tiny_screen.conditions[0], n_cells=10).layers["mean"], before.layers["mean"])
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="time_scale"):
            CounterFlow(data, **TINY | {"time_scale": value})
    with pytest.raises(ConfigError, match="TimeEmbedding"):
        CounterFlow(data, backbone=nn.Linear(6, 6), time_scale=1.0, space_kwargs={"n_components": 6})


# ---------------------------------------------------------------------------------------------------------------- reflow


def straightness(model, condition):
    """How far one Euler step ends from where many small ones do, relative to the way."""
    module = model.module
    state = model.space.encode(model._screen.counts[:60], model._screen.library[:60])
    start = state if module.source == "control" else torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
    ids = model.vocabulary.ids([ConditionSpec((condition,), (1.0,))] * 60, {})
    one, many = (solve(module, state, start, ids, ids, how) for how in (Sampling("euler", 1), Sampling("rk4", 20)))
    return float((one - many).norm() / (many - start).norm())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["control", "noise"])
def test_reflow_straightens_the_paths(data, tiny_screen, source):
    options = {"source": source, "anchor": "none", "backbone_kwargs": {"size": "S"}}
    before, after = (fit(data, {"max_steps": 150, "reflow_steps": n}, **options) for n in (0, 150))
    single = tiny_screen.conditions[0]
    assert straightness(after, single) < 0.8 * straightness(before, single)


def one_batch(model):
    states = states_of(model._train_cells, model.space)
    plan = {"n_sets": 2, "set_size": 16, "seed": 0, "start": 0, "stop": 1}
    return training_steps(model._train_cells, states, model.vocabulary, None, model.setup, anchors=False, **plan).batch(0)


def test_pairs_are_those_of_the_teacher(data):
    model = fit(data, {"max_steps": 20}, condition_dropout=0.0, anchor="none")
    teacher, batch = model.module, one_batch(model)
    objective = Reflow(fit(data, {"max_steps": 1}, condition_dropout=0.0, anchor="none").module, teacher).eval()
    x0, x1, _ = objective.pairs(batch, torch.Generator().manual_seed(0))
    assert torch.equal(x0, objective.module.pairs(batch, torch.Generator().manual_seed(0))[0])
    assert torch.allclose(x1, solve(teacher, x0, None, batch.ids, batch.ids, Sampling()), atol=1e-5)
    assert (x1 - batch.target).abs().max() > 0.1
    trained = {id(weight) for weight in objective.parameters()}
    assert trained == {id(weight) for weight in objective.module.parameters()}
    objective.loss(batch, torch.Generator().manual_seed(0)).backward()
    assert all(weight.grad is None for weight in teacher.parameters())


def test_teacher_and_pupil_are_in_the_dark_about_the_same_things(data, monkeypatch):
    model = fit(data, {"max_steps": 1}, condition_dropout=0.5)
    heard, dropped = [], FlowModule.dropped_condition
    monkeypatch.setattr(FlowModule, "dropped_condition", lambda *given: heard.append(dropped(*given)) or heard[-1])
    Reflow(copy.deepcopy(model.module), model.module).train().loss(one_batch(model), torch.Generator().manual_seed(0))
    teacher, pupil = heard
    assert all(torch.equal(a, b) for a, b in zip(teacher, pupil, strict=True))


def test_reflow_starts_where_the_fit_ended_and_changes_the_network_only(data):
    before, after = (fit(data, {"reflow_steps": n}) for n in (0, 5))
    assert 0 < (weights(before) - weights(after)).norm() < 0.5 * weights(before).norm()
    assert np.array_equal(before.rule.states.measured.effect, after.rule.states.measured.effect)
    assert {kind: t.mean for kind, t in before.trust.items()} == {kind: t.mean for kind, t in after.trust.items()}


def test_a_run_killed_while_it_reflows_ends_at_the_same_bits(data, tmp_path, monkeypatch):
    whole = fit(data, {"reflow_steps": 20})
    run = {"reflow_steps": 20, "run_dir": tmp_path}
    loss, calls = Reflow.loss, []

    def killed(self, batch, generator):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return loss(self, batch, generator)

    with monkeypatch.context() as patched, pytest.raises(BaseException):  # noqa: B017  Lightning turns a signal into an exit
        patched.setattr(Reflow, "loss", killed)
        fit(data, run)
    kept = list((tmp_path / "checkpoints").glob("part-*.ckpt"))
    assert kept
    resumed = fit(data, run | {"resume_from": tmp_path / "checkpoints" / "last.ckpt"})
    assert torch.equal(weights(resumed), weights(whole))


def test_what_cannot_be_reflowed_is_refused(data):
    for train, options in [({"reflow_steps": -1}, {}), ({"reflow_steps": 5, "max_seconds": 1.0, "max_steps": None}, {}),
                           ({"reflow_steps": 5}, {"objective": "meanflow"})]:  # fmt: skip
        with pytest.raises(ConfigError, match="reflow_steps"):
            fit(data, train, **options)
