"""The one contract of the toolkit: every backbone x space x conditioning x source trains, predicts, generates, saves and loads."""

import warnings

import numpy as np
import pytest
import torch

from counterflow import CounterFlow

N_STEPS = 4  # of the solver: what comes back, not how good it is


@pytest.fixture(scope="session")
def scvi_model(tiny_screen):
    """One autoencoder for all cases, handed in as a user would hand in his own."""
    import scvi

    adata = tiny_screen.adata.copy()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        scvi.model.SCVI.setup_anndata(adata)
        model = scvi.model.SCVI(adata, n_hidden=16, n_latent=8, gene_likelihood="nb")
        quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        model.train(max_epochs=3, batch_size=64, train_size=1.0, accelerator="cpu", **quiet)
    return model


@pytest.mark.parametrize("source", ["control", "noise"])
@pytest.mark.parametrize("space", ["raw", "pca", "latent"])
def test_trains_predicts_generates_saves_and_loads(
    backbone, conditioning, space, source, backbone_kwargs, declared, asked, scvi_model, randomise, tmp_path, tiny_screen
):
    model = CounterFlow(
        declared,
        backbone=backbone,
        space=scvi_model if space == "latent" else space,
        source=source,
        conditioning=conditioning,
        backbone_kwargs=backbone_kwargs,
        space_kwargs={"n_components": 8} if space == "pca" else None,
        encoder_kwargs={"width": 16},
    )
    untrained = weights(model)
    model.train(max_steps=20, batch_size=32, set_size=16, progress=False)
    assert sum(not torch.equal(now, untrained[name]) for name, now in weights(model).items()) > len(untrained) / 2
    assert all(np.isfinite(value) for row in model.history for value in row.values())

    controls = declared[declared.obs["perturbation"] == "control"][:20]
    single, pair = (next(name for name in tiny_screen.conditions if ("+" in name) == combined) for combined in (False, True))

    def cells(model):
        predicted = model.predict(controls, asked(single, pair), n_steps=N_STEPS, seed=1)
        return predicted, model.generate(asked(pair), 15, n_steps=N_STEPS, seed=1)

    predicted, generated = cells(model)
    assert predicted.shape == (40, 30) and generated.shape == (15, 30)
    for answer in (predicted, generated):
        check_cells(answer)

    model.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model", trust_packages=[backbone.split(":")[0].split(".")[0]])
    for before, after in zip((predicted, generated), cells(loaded), strict=True):
        assert_same_cells(before, after)

    randomise(model.module)  # 20 steps from zero may whisper what they should say
    one, other = (model.predict(controls, asked(name), n_steps=N_STEPS) for name in (single, pair))
    assert np.abs(one.layers["mean"] - other.layers["mean"]).max() > 1e-3
    alone = model.predict(controls[3], asked(single), n_steps=N_STEPS)
    assert_same_cells(alone, one[3])


def test_trains_in_bf16(backbone, conditioning, backbone_kwargs, declared, asked):
    model = CounterFlow(declared, backbone=backbone, space="raw", conditioning=conditioning, backbone_kwargs=backbone_kwargs)
    model.train(max_steps=3, batch_size=32, set_size=16, precision="bf16-mixed", progress=False)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights(model).values())
    check_cells(model.generate(asked("control"), 5, n_steps=N_STEPS))


def test_the_latent_space_trains_its_own_autoencoder(declared, tmp_path):
    size = {"n_latent": 6, "n_hidden": 16, "max_epochs": 2}
    model = CounterFlow(declared, space="latent", backbone_kwargs={"size": "XS"}, space_kwargs=size)
    model.train(max_steps=5, progress=False)
    assert model.get_latent_representation().shape == (declared.n_obs, 6)
    cells = model.predict(declared, "control", n_steps=N_STEPS)
    check_cells(cells)
    model.save(tmp_path / "model")
    assert_same_cells(cells, CounterFlow.load(tmp_path / "model").predict(declared, "control", n_steps=N_STEPS))


def weights(model):
    return {name: value.clone() for name, value in model.module.named_parameters()}


def check_cells(cells):
    counts, mean = cells.layers["counts"].toarray(), cells.layers["mean"]
    assert np.isfinite(mean).all() and (mean >= 0).all()
    assert (counts >= 0).all() and (counts == np.rint(counts)).all() and counts.sum() > 0
    assert np.isfinite(cells.X.data).all() and ((cells.X.toarray() > 0) == (counts > 0)).all()


def assert_same_cells(a, b):
    assert list(a.obs_names) == list(b.obs_names)
    assert (a.X != b.X).nnz == 0 and (a.layers["counts"] != b.layers["counts"]).nnz == 0
    assert np.array_equal(a.layers["mean"], b.layers["mean"])
