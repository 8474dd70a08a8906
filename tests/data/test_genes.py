"""A choice of genes is kept with the cells it was made on; the library sizes stay those of the whole cell."""

import numpy as np
import pytest
from scipy import sparse

import counterflow as cf
from counterflow.data.genes import CHOICE, chosen_genes
from counterflow.data.ledger import Ledger, hashes

SETUP = {"perturbation_key": "perturbation", "control": "control"}


@pytest.fixture
def halved(tiny_screen):
    """The tiny screen, one pair held out."""
    adata = tiny_screen.adata.copy()
    pair = next(name for name in tiny_screen.conditions if "+" in name)
    adata.obs["split"] = np.where(adata.obs["perturbation"] == pair, "test", "train")
    cf.CounterFlow.setup_anndata(adata, **SETUP, split_key="split")
    return adata


def test_a_model_has_the_chosen_genes_and_the_whole_library(halved):
    genes = list(halved.var_names[[9, 2, 5, 7]])
    cf.choose_genes(halved, genes, chosen_on=halved.obs_names[:6])
    model = cf.CounterFlow(halved, space_kwargs={"n_components": 2})
    assert model.genes == tuple(genes)
    np.testing.assert_array_equal(model._screen.library, np.asarray(halved.X.sum(1)).ravel())
    assert sorted(model.ledger.seen["genes"].name) == sorted(hashes(list(halved.obs_names[:6])))


def test_a_number_looks_at_training_cells_only(halved):
    cf.choose_genes(halved, 8)
    chosen = list(halved.uns[CHOICE]["genes"])
    training = halved.obs_names[halved.obs["split"] == "train"]
    assert sorted(halved.uns[CHOICE]["chosen_on"]) == sorted(hashes(list(training)))
    changed = halved.copy()
    x = changed.X.toarray()
    x[(changed.obs["split"] == "test").to_numpy()] = np.random.default_rng(0).integers(0, 900, (1, x.shape[1]))
    changed.X = sparse.csr_matrix(x)
    cf.choose_genes(changed, 8)
    assert list(changed.uns[CHOICE]["genes"]) == chosen


def test_the_choice_survives_the_file(halved, tmp_path):
    cf.choose_genes(halved, list(halved.var_names[:5]), chosen_on=[])
    halved.write_h5ad(tmp_path / "x.h5ad")
    ledger = Ledger()
    assert chosen_genes(cf.read_h5ad(tmp_path / "x.h5ad"), ledger) == tuple(halved.var_names[:5])
    assert len(ledger.seen["genes"].name) == 0


def test_without_a_choice_the_ledger_says_that_it_does_not_know(halved):
    ledger = Ledger()
    assert chosen_genes(halved, ledger) is None and "not known" in ledger.remarks["genes"]


def test_own_genes_need_their_cells_and_must_be_there(halved):
    with pytest.raises(cf.ConfigError, match="chosen_on must be given"):
        cf.choose_genes(halved, ["G001"])
    with pytest.raises(cf.DataError, match="NOPE"):
        cf.choose_genes(halved, ["NOPE"], chosen_on=[])
    assert CHOICE not in halved.uns
