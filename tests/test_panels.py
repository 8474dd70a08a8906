"""A fitted model on other genes than it was trained on."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from counterflow import CounterFlow
from counterflow.cli import main
from counterflow.conditions.gene_features import carried_over, gene_loadings
from counterflow.errors import ConfigError, DataError

TINY = {"width": 16, "depth": 1, "n_heads": 2}
N_TRAINED = 24  # of 30 genes


@pytest.fixture
def screen(tiny_screen):
    """With library sizes of all genes, so that panels agree on what a count is worth."""
    adata = tiny_screen.adata.copy()
    adata.obs["library"] = np.asarray(adata.X.sum(1)).ravel()
    return adata


def fitted(adata, randomise, backbone="set", **options):
    adata = adata[:, :N_TRAINED].copy()
    kwargs = TINY | options.pop("backbone_kwargs", {"gene_features": "coexpression"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", library_size_key="library")
        model = CounterFlow(adata, backbone=backbone, backbone_kwargs=kwargs, encoder_kwargs={"width": 16}, **{"space": "raw"} | options)
        model.train(max_steps=3, batch_size=32, set_size=16, progress=False)
    randomise(model.module)
    return model


def expected(model, adata, genes=None):
    condition = sorted(model.vocabulary.seen)[0]
    mean = model.predict(adata, condition, n_steps=2).to_df("mean")
    return mean if genes is None else mean[genes]


def other(model, adata, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.on_panel(adata, **options)


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("set", {}),
        ("set", {"gene_features": "coexpression"}),
        ("dit", {"genes_per_token": 1}),
        ("dit", {"genes_per_token": 1, "gene_features": "coexpression"}),
        ("ssm", {"order": "none"}),
        ("ssm", {"order": "none", "gene_features": "coexpression"}),
    ],
)
def test_another_order_is_the_same_answer(backbone, kwargs, screen, randomise):
    model = fitted(screen, randomise, backbone, backbone_kwargs=kwargs, source="control", anchor="none")
    genes = list(np.random.default_rng(0).permutation(model.genes))
    mixed = other(model, screen[:, genes])
    assert mixed.genes == tuple(genes)
    before, after = expected(model, screen), expected(mixed, screen)
    np.testing.assert_allclose(after[list(model.genes)], before, rtol=1e-3, atol=1e-4)
    assert list(after.columns) == genes


def test_a_part_of_the_genes_is_a_network_that_never_heard_of_the_others(screen, randomise):
    model = fitted(screen, randomise, source="control", anchor="none")
    part = list(model.genes[5:17])
    small = other(model, screen, genes=part)
    x, t = torch.randn(3, len(part)), torch.rand(3)
    three = model._train_cells.rows(np.arange(3))
    condition = model.module.encoder(model._ids(next(iter(model.vocabulary.conditions)), three))
    whole = torch.zeros(3, N_TRAINED)
    whole[:, 5:17] = x
    with torch.no_grad():
        answer = small.module.backbone(x, t, condition)
        assert (answer - model.module.backbone(whole, t, condition)[:, 5:17]).abs().max() > 1e-5  # the others are not there, not at 0
    assert torch.equal(small.module.backbone.embedding, model.module.backbone.embedding[5:17])
    assert expected(small, screen).shape[1] == len(part)


def test_new_genes_are_known_by_their_features(screen, randomise, tmp_path, capsys):
    model = fitted(screen, randomise, source="control", anchor="none")
    with pytest.warns(UserWarning, match="6 of 30 genes were not in training"):
        whole = model.on_panel(screen)
    new = list(screen.var_names[N_TRAINED:])
    assert whole.trained_on["unseen_genes"] == new
    backbone = whole.module.backbone
    assert (backbone.embedding[N_TRAINED:] == 0).all() and (backbone.weight[N_TRAINED:] == 0).all()
    assert backbone.features[N_TRAINED:].any(1).all()
    assert np.isin(whole.reference.obs.index, screen.obs_names).all() and "reference" in whole.ledger.seen

    mean = expected(whole, screen)
    assert np.isfinite(mean[new]).all().all()
    swapped = whole.module.backbone.features[[25, 24]].clone()  # the answer follows the features
    whole.module.backbone.features[[24, 25]] = swapped
    assert np.abs(expected(whole, screen)[new[:2]] - mean[new[:2]]).max().max() > 1e-4
    whole.module.backbone.features[[25, 24]] = swapped.clone()

    whole.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model")
    assert loaded.genes == whole.genes and loaded.trained_on["unseen_genes"] == new
    pd.testing.assert_frame_equal(expected(loaded, screen), expected(whole, screen))
    assert main(["info", str(tmp_path / "model")]) == 0
    assert "genes not in training" in capsys.readouterr().out


def test_a_table_of_features(screen, randomise, tmp_path):
    names = list(screen.var_names)
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 5)), index=names)
    table.loc["ELSEWHERE"] = 1.0
    model = fitted(screen, randomise, source="control", anchor="none", backbone_kwargs={"gene_features": table})
    assert model.config["backbone_kwargs"]["gene_features"] == "table"
    model.save(tmp_path / "model")
    model = CounterFlow.load(tmp_path / "model")
    standard = ((table - table.mean()) / table.std()).to_numpy(dtype=np.float32)
    whole = other(model, screen, gene_features=table)
    np.testing.assert_allclose(whole.module.backbone.features.numpy(), standard[:30], atol=1e-5)
    with pytest.raises(DataError, match="give the table"):
        model.on_panel(screen)
    with pytest.raises(DataError, match="not the table"):
        model.on_panel(screen, gene_features=table * [1, 1, 1, 1, -1])
    with pytest.raises(DataError, match=rf"1 genes .* have no features \({names[-1]}"):
        model.on_panel(screen, gene_features=table.rename(index={names[-1]: "NOBODY"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "pca", "backbone_kwargs": {}}, "space='raw'"),
        ({"source": "control", "backbone_kwargs": {}}, "anchor='none'"),
        ({"backbone": "dit", "backbone_kwargs": {}}, "genes_per_token=1"),
        ({"backbone": "ssm", "backbone_kwargs": {"genes_per_token": 1}}, "order='none'"),
        ({"backbone_kwargs": {}, "coupling": "genot"}, "genot"),
    ],
)
def test_models_that_need_their_genes_say_so(options, message, screen, randomise):
    with pytest.raises(ConfigError, match=message):
        fitted(screen, randomise, **options).on_panel(screen)


def test_genes_without_anything_known_are_said(screen, randomise):
    plain = fitted(screen, randomise, backbone_kwargs={})
    with pytest.raises(DataError, match="6 genes were not in training .*numbers only"):
        plain.on_panel(screen)
    assert other(plain, screen, genes=plain.genes[:5]).genes == plain.genes[:5]
    featured = fitted(screen, randomise)
    constant = screen.copy()
    constant.X[:, 29] = 0
    constant.X.eliminate_zeros()
    with pytest.raises(DataError, match="1 genes .* have no features"):
        featured.on_panel(constant)
    with pytest.raises(DataError, match="none of these 6 genes"):
        featured.on_panel(screen[:, N_TRAINED:])
    with pytest.raises(ConfigError, match="each once"):
        featured.on_panel(screen, genes=["a", "a"])


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        ({"gene_features": "coexpresion"}, {}, "did you mean 'coexpression'"),
        ({"gene_features": "coexpression"}, {"space": "pca"}, "space='raw'"),
        ({"gene_features": "coexpression", "modules": "rank"}, {}, "genes as a set"),
        ({"gene_features": pd.DataFrame({"a": [1.0, 2.0]}, index=["X", "Y"])}, {}, "names none of the 24 genes"),
    ],
)
def test_what_cannot_be_built_is_said(kwargs, options, message, screen, randomise):
    with pytest.raises((ConfigError, DataError), match=message):
        fitted(screen, randomise, backbone_kwargs=kwargs, **options)


def test_loadings_are_found_again_from_the_other_genes():
    """Genes left out of the PCA get, by regression on the scores of the others, the loadings that the PCA would give them."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, 40))
    values = sparse.csr_matrix(np.log1p(draw.poisson(np.exp(draw.normal(size=(600, 3)) @ weights + 2))).astype(np.float32))
    loadings = gene_loadings(values)
    np.testing.assert_array_equal(carried_over(loadings, np.arange(40), values), loadings)
    left_out = np.array([3, 11, 12, 30])
    known = np.arange(40)
    known[left_out] = -1
    found, true = carried_over(loadings, known, values)[left_out, :3], loadings[left_out, :3]  # three components, and noise
    alike = (found * true).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(true, axis=1)
    assert (alike > 0.97).all()


def test_generate_for_the_genes_of_a_file(screen, randomise, tmp_path, capsys):
    fitted(screen, randomise, source="control", anchor="none").save(tmp_path / "model")
    screen.write_h5ad(tmp_path / "controls.h5ad")
    words = [
        "generate",
        str(tmp_path / "model"),
        "--condition",
        "control",
        "--out",
        str(tmp_path / "cells.h5ad"),
        "--panel",
        "--n_cells",
        "5",
    ]
    assert main(words) == 2
    assert "--panel needs --controls" in capsys.readouterr().err
    assert main([*words, "--controls", str(tmp_path / "controls.h5ad")]) == 0
    assert "6 of 30 genes were not in training" in capsys.readouterr().err
    assert list(anndata.read_h5ad(tmp_path / "cells.h5ad").var_names) == list(screen.var_names)
