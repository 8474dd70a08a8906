"""What a model answers goes unchanged into the tools that others wrote."""

import anndata
import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import counterflow as cf


@pytest.fixture(scope="module")
def adata(tiny_screen):
    adata = tiny_screen.adata.copy()
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    return adata


@pytest.fixture(scope="module")
def model(adata):
    model = cf.CounterFlow(adata, space_kwargs={"n_components": 4}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=5, progress=False)
    return model


@pytest.fixture
def cells(model):
    """All conditions, and 30 cells of each."""
    return model.predict(n_cells=30)


def test_scanpy_takes_predictions_as_they_are(cells, tmp_path):
    import scanpy as sc

    sc.pp.filter_genes(cells, min_cells=1)
    sc.pp.highly_variable_genes(cells, n_top_genes=10)
    sc.pp.pca(cells, n_comps=5)
    sc.tl.rank_genes_groups(cells, "perturbation", method="wilcoxon")
    first = cells.obs["perturbation"].cat.categories[0]
    table = sc.get.rank_genes_groups_df(cells, first)
    assert len(table) == cells.n_vars and np.isfinite(table["scores"]).all()
    for draw in (
        lambda: sc.pl.pca(cells, color="perturbation", show=False),
        lambda: sc.pl.violin(cells, cells.var_names[:2], groupby="support", show=False),
        lambda: sc.pl.rank_genes_groups(cells, show=False),
    ):
        draw()
        assert plt.get_fignums()
        plt.close("all")
    sums = sc.get.aggregate(cells, by="perturbation", func="sum", layer="counts")
    assert sums.layers["sum"].sum() == cells.layers["counts"].sum()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").uns["counterflow"]["version"] == cf.__version__


def test_predictions_stand_beside_real_cells_in_one_table(cells, adata):
    both = anndata.concat({"predicted": cells, "real": adata}, label="origin", join="inner")
    assert both.n_obs == cells.n_obs + adata.n_obs and list(both.var_names) == list(adata.var_names)
    assert set(both.obs.columns) >= {"perturbation", "cell_type", "origin"}


def test_cell_eval_scores_predictions_as_they_are(cells, adata):
    cell_eval2 = pytest.importorskip("cell_eval2")
    for predicted, real in cf.evaluate.cell_eval_pairs(cells, adata).values():
        results = cell_eval2.compute_metrics(predicted, real, input_type="lognorm", target_gene_map={"*": None})
        assert results is not None


def test_cellxgene_takes_them_with_an_embedding_of_the_model(cells, model, tmp_path):
    cells.obsm["X_counterflow"] = model.get_latent_representation(cells, layer="counts")
    read = anndata.read_h5ad(cf.to_cellxgene(cells, tmp_path / "cells.h5ad"))
    assert read.obsm["X_counterflow"].shape == (cells.n_obs, 4)
    assert {"perturbation", "support", "source_cell"} <= set(read.obs)


def test_a_latent_representation_is_one_row_per_cell(model, adata):
    states = model.get_latent_representation()
    assert states.shape == (adata.n_obs, 4) and np.isfinite(states).all()
    np.testing.assert_allclose(model.get_latent_representation(adata[10:20].copy()), states[10:20], atol=1e-6)


def test_predicted_cells_lie_where_they_were_sent(model, adata, cells):
    """Not where their log1p values would lie, which are refused."""
    here = cells[cells.obs["perturbation"] == cells.obs["perturbation"].iloc[0]]
    states = model.get_latent_representation(here, layer="counts")
    counts = here.copy()
    counts.X = counts.layers["counts"]
    np.testing.assert_array_equal(states, model.get_latent_representation(counts))
    with pytest.raises(cf.DataError):
        model.get_latent_representation(here)
    with pytest.raises(cf.DataError, match="layer='count' is not in adata.layers"):
        model.get_latent_representation(here, layer="count")


def test_perturbations_are_embedded_by_name(model, tiny_screen):
    table = model.get_perturbation_embedding()
    assert isinstance(table, pd.DataFrame) and list(table.index) == sorted(model.vocabulary.seen)
    assert np.isfinite(table.to_numpy()).all() and table.index.name == "perturbation"


def test_unseen_perturbations_are_embedded_by_their_features(model):
    seen = sorted(model.vocabulary.seen)
    unseen = sorted(set(model.vocabulary.entities) - set(seen))[:3]
    table = model.get_perturbation_embedding([seen[0], *unseen])
    assert list(table.index) == [seen[0], *unseen]
    np.testing.assert_array_equal(table.iloc[:1], model.get_perturbation_embedding().iloc[:1])
    assert len(np.unique(table.to_numpy().round(5), axis=0)) == 4
    with pytest.raises(cf.DataError, match="neither seen in training nor has features"):
        model.get_perturbation_embedding(["NOBODY"])
    with pytest.raises(cf.DataError, match="control"):
        model.get_perturbation_embedding(["control"])
    with pytest.raises(cf.DataError, match="combination"):
        model.get_perturbation_embedding([f"{seen[0]}+{seen[1]}"])
