"""Files for cellxgene hold what the viewer reads, and what it would stumble over is said before anything is written."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.data.cellxgene import cellxgene_problems
from counterflow.errors import DataError


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"condition": ["A", "B"] * 4, "dose": np.arange(8.0), "good": [True, False] * 4}, index=[f"c{i}" for i in range(8)])
    adata = AnnData(rng.poisson(2, (8, 5)).astype(float), obs=obs, var=pd.DataFrame(index=list("VWXYZ")))
    adata.obsm["X_pca"], adata.obsm["other"] = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    adata.layers["counts"] = adata.X.copy()
    adata.uns |= {"condition_colors": ["#000000", "#ffffff"], "large": {"nested": 1}}
    return adata


def test_what_is_written_is_what_the_viewer_reads(cells, tmp_path):
    before = cells.copy()
    path = cf.to_cellxgene(cells, tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(path)
    assert sparse.isspmatrix_csr(read.X) or isinstance(read.X, sparse.csr_array)
    assert read.X.dtype == np.float32 and (read.X.toarray() == cells.X).all()
    assert list(read.obsm) == ["X_pca"] and read.obsm["X_pca"].dtype == np.float32
    assert (
        isinstance(read.obs["condition"].dtype, pd.CategoricalDtype) and read.obs["dose"].dtype == float and read.obs["good"].dtype == bool
    )
    assert list(read.uns) == ["condition_colors"] and not read.layers
    assert cellxgene_problems(read) == []
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert list(cells.obsm) == ["X_pca", "other"]


@pytest.mark.parametrize("kind", [object, "string"])
def test_missing_words_stay_missing(cells, tmp_path, kind):
    cells.obs["note"] = pd.Series(["x", None] * 4, index=cells.obs_names, dtype=kind)
    read = anndata.read_h5ad(cf.to_cellxgene(cells, tmp_path / "cells.h5ad"))
    assert list(read.obs["note"].cat.categories) == ["x"] and read.obs["note"].isna().sum() == 4


def without_embedding(cells):
    del cells.obsm["X_pca"]


def one_column(cells):
    cells.obsm["X_pca"] = cells.obsm["X_pca"][:, :1]


def infinite_place(cells):
    cells.obsm["X_pca"][0, 0] = np.inf


def twice_the_same_cell(cells):
    cells.obs_names = ["c0", *cells.obs_names[:-1]]


def twice_the_same_gene(cells):
    cells.var_names = list("VWXYY")


def not_a_number(cells):
    cells.X[0, 0] = np.nan


def nothing(cells):
    cells.X = None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_embedding, "no embedding: obsm has no 'X_...' (scanpy.pp.pca"),
        (one_column, "two columns at least"),
        (infinite_place, "obsm['X_pca'] holds values that are no finite"),
        (twice_the_same_cell, "cell names are not unique"),
        (twice_the_same_gene, "gene names are not unique"),
        (not_a_number, "X holds values that are not finite"),
        (nothing, "X is not there"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not unique")
def test_what_the_viewer_would_stumble_over_is_said_and_nothing_written(cells, tmp_path, spoil, said):
    spoil(cells)
    with pytest.raises(DataError) as error:
        cf.to_cellxgene(cells, tmp_path / "cells.h5ad")
    assert said in str(error.value) and not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_said_together(cells, tmp_path):
    without_embedding(cells)
    twice_the_same_gene(cells)
    with pytest.raises(DataError, match="2 problems"):
        cf.to_cellxgene(cells, tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"ends in \.h5ad"):
        cf.to_cellxgene(cells, tmp_path / "cells.csv")


def test_columns_that_are_neither_are_found(cells):
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    assert cellxgene_problems(cells) == ["obs['condition'] is object: neither categories nor numbers nor true and false"]
