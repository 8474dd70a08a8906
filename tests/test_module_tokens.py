"""A model whose tokens are modules: from a GMT file, from clusters, or ranks; through Python and the command line."""

import warnings

import numpy as np
import pytest
import torch

from counterflow import CounterFlow
from counterflow.cli import main
from counterflow.errors import CheckpointError, ConfigError, DataError
from counterflow.grouping import feature_order

TINY = {"width": 16, "depth": 1, "n_heads": 2}


@pytest.fixture
def gmt(tiny_screen, tmp_path):
    genes = list(tiny_screen.adata.var_names)
    file = tmp_path / "pathways.gmt"
    file.write_text(f"ONE\t\t{genes[3]}\t{genes[7]}\t{genes[8]}\nTWO\t\t{genes[7]}\tUNHEARD\nTHREE\t\t{genes[20]}\t{genes[21]}\n")
    return file


def fitted(adata, backbone="dit", space="raw", **backbone_kwargs):
    model = CounterFlow(
        adata,
        backbone=backbone,
        space=space,
        backbone_kwargs=TINY | backbone_kwargs,
        encoder_kwargs={"width": 16},
        space_kwargs={"n_components": 9} if space == "pca" else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_steps=4, batch_size=32, set_size=16, progress=False)
    return model


def members(model):
    return model.module.backbone.tokenizer.layout.members


@pytest.mark.parametrize("backbone", ["dit", "set", "ssm", "longconv"])
def test_pathways_are_saved_with_the_model(backbone, declared, gmt, randomise, tmp_path):
    with pytest.warns(UserWarning, match=r"modules: 1 of 6 genes are not among the modelled ones \(UNHEARD\)"):
        model = fitted(declared, backbone, modules=gmt, genes_per_token=7)
    groups = {frozenset(row[row >= 0].tolist()) for row in members(model)}
    assert {frozenset({3, 7, 8}), frozenset({7}), frozenset({20, 21})} <= groups
    assert set().union(*groups) == set(range(30))
    assert sorted(len(group) for group in groups) == [1, 2, 3, 4, 7, 7, 7]  # 25 genes in no set, 7 at a time

    randomise(model.module)
    cells = model.predict(declared, "control", n_steps=2)
    model.save(tmp_path / "model")
    gmt.unlink()
    loaded = CounterFlow.load(tmp_path / "model")
    assert torch.equal(members(loaded), members(model))
    assert np.array_equal(loaded.predict(declared, "control", n_steps=2).layers["mean"], cells.layers["mean"])
    loaded.attach(declared)
    with pytest.raises(DataError, match=r"cannot read the gene sets in .*pathways\.gmt"):
        loaded.train(max_steps=1, progress=False)  # a new fit reads the sets anew


@pytest.mark.parametrize(("backbone", "space"), [("dit", "raw"), ("set", "pca"), ("ssm", "pca")])
def test_clusters_are_learnt_from_training_controls(backbone, space, declared, tmp_path):
    held_out = (declared.obs["perturbation"] == "control").to_numpy() & (np.arange(declared.n_obs) % 2 == 0)
    declared.obs["split"] = np.where(held_out, "test", "train")
    CounterFlow.setup_anndata(declared, perturbation_key="perturbation", control="control", split_key="split")
    model = fitted(declared, backbone, space, modules="clusters", genes_per_token=3)
    cells = model._train_cells
    assert len(model.ledger.seen["order"].name) == cells.is_control.sum() > 0
    assert np.isin(model.ledger.seen["order"].name, cells.rows(np.flatnonzero(cells.is_control)).keys.name).all()
    states = model.space.encode(cells.counts[np.flatnonzero(cells.is_control)], cells.library[cells.is_control])
    table = members(model)
    assert table[table >= 0].tolist() == feature_order(states).tolist() and (table >= 0).sum(1).max() <= 3
    model.save(tmp_path / "model")
    assert torch.equal(members(CounterFlow.load(tmp_path / "model")), table)


def test_the_ledger_says_that_gene_sets_were_handed_in(declared, gmt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fitted(declared, modules=str(gmt))
    assert "handed in" in model.ledger.remarks["order"] and "order" in model.ledger.seen


def test_ranks_come_back_from_a_file(declared, randomise, tmp_path):
    model = fitted(declared, "set", modules="rank")
    assert "order" not in model.ledger.seen
    randomise(model.module)
    model.save(tmp_path / "model")
    a, b = (one.generate("control", 8, n_steps=2).layers["mean"] for one in (model, CounterFlow.load(tmp_path / "model")))
    assert np.array_equal(a, b)


def test_a_changed_table_is_refused(declared, tmp_path, monkeypatch):
    model = fitted(declared, modules="clusters")
    members(model)[0, 0] = members(model)[1, 0]  # a gene is now in no module
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="in no module|twice"):
        CounterFlow.load(tmp_path / "model")


def test_a_network_without_tokens_says_so(declared):
    with pytest.raises(ConfigError, match="'mlp' takes no argument 'modules'"):
        CounterFlow(declared, backbone_kwargs={"modules": "clusters"})


def test_the_command_line_takes_them_and_a_run_needs_them_no_more(tiny_screen, gmt, tmp_path, capsys):
    file, run = tmp_path / "screen.h5ad", tmp_path / "run"
    tiny_screen.adata.write_h5ad(file)
    options = ["--setup.perturbation_key", "perturbation", "--setup.control", "control", "--model.backbone", "dit", "--model.space", "raw"]
    options += ["--model.backbone_kwargs", f"{{modules: {gmt}, width: 16, depth: 1, n_heads: 2}}", "--train.max_steps", "3"]
    assert main(["fit", str(file), *options, "--out", str(run), "--quiet"]) == 0
    gmt.unlink()
    assert main(["generate", str(run), "--condition", "control", "--n_cells", "4", "--out", str(tmp_path / "cells.h5ad")]) == 0
    assert main(["fit", str(file), *options, "--out", str(tmp_path / "other"), "--quiet"]) == 2
    assert "cannot read the gene sets" in capsys.readouterr().err and not (tmp_path / "other").exists()
