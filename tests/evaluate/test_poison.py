"""The garbage is valid data and touches held-out cells only; the test finds what reads them, and trusts no fit that repeats badly."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.data.schema import Setup, declare
from counterflow.data.screen import read_screen
from counterflow.evaluate.baselines import BASELINES, applicable
from counterflow.evaluate.poison import poison_test, poisoned


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "A", "B", "A+B"], 15)
    obs = pd.DataFrame({"perturbation": labels, "split": np.where(labels == "A+B", "test", "train")}, index=[f"c{i}" for i in range(60)])
    adata = AnnData(sparse.csr_matrix(rng.poisson(1.5, (60, 12)).astype(np.float32)), obs=obs, var=pd.DataFrame(index=list("ABCDEFGHIJKL")))
    declare(adata, Setup("perturbation", "control", split_key="split"))
    return adata


ROWS = np.arange(45, 60)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, lambda m: m.toarray(), lambda m: m.astype(np.uint8)])
def test_only_these_rows_are_garbage_and_it_is_counts(adata, form):
    adata.X = form(adata.X)
    spoilt = poisoned(adata, ROWS)
    read = read_screen(spoilt, Setup("perturbation", "control", split_key="split"))  # verifies the matrix
    before = np.asarray(adata.X.todense() if sparse.issparse(adata.X) else adata.X, dtype=float)
    after = read.counts.toarray()
    np.testing.assert_array_equal(after[:45], before[:45])
    assert (after[45:] != before[45:]).any(1).all() and (after[45:].sum(1) >= 2 * before[45:].sum(1)).all()
    assert type(spoilt.X) is type(adata.X)


def test_log1p_stays_log1p_and_the_library_goes_along(adata):
    counts = adata.X.toarray()
    adata.obs["n"] = counts.sum(1) + 5.0
    adata.X = sparse.csr_matrix(np.log1p(1e4 * counts / adata.obs["n"].to_numpy()[:, None]).astype(np.float32))
    setup = Setup("perturbation", "control", matrix_state="log1p", library_size_key="n", split_key="split")
    declare(adata, setup)
    spoilt = read_screen(poisoned(adata, ROWS), setup)
    np.testing.assert_array_equal(spoilt.counts.toarray()[:45], counts[:45])
    assert (spoilt.library[45:] >= 2 * adata.obs["n"].to_numpy()[45:]).all()


@pytest.mark.parametrize("form", [sparse.csr_matrix, lambda m: pd.DataFrame(m, index=[f"c{i}" for i in range(60)], columns=list("xyz"))])
def test_embeddings_of_every_form_are_spoilt(adata, form):
    adata.obsm["protein"] = form(np.random.default_rng(1).normal(size=(60, 3)))
    spoilt = poisoned(adata, ROWS).obsm["protein"]
    one, two = (np.asarray(x.todense() if sparse.issparse(x) else x) for x in (adata.obsm["protein"], spoilt))
    np.testing.assert_array_equal(one[:45], two[:45])
    assert (one[45:] != two[45:]).any(1).all() and type(spoilt) is type(adata.obsm["protein"])


def test_layers_embeddings_and_raw_are_spoilt_too(adata):
    adata.layers["more"] = adata.X * 3
    adata.obsm["X_pca"] = np.random.default_rng(1).normal(size=(60, 3))
    adata.raw = adata.copy()
    spoilt = poisoned(adata, ROWS)
    for one, two in (
        (adata.layers["more"].toarray(), spoilt.layers["more"].toarray()),
        (adata.obsm["X_pca"], spoilt.obsm["X_pca"]),
        (adata.raw.X.toarray(), spoilt.raw.X.toarray()),
    ):
        np.testing.assert_array_equal(one[:45], two[:45])
        assert (one[45:] != two[45:]).any(1).all()


class Mean:
    """Predicts the mean of the cells it was given, as they are in one field of the AnnData."""

    def __init__(self, values):
        self.values = np.asarray(values, dtype=float)

    def predict(self, adata, conditions):
        return AnnData(np.tile(self.values.mean(0), (adata.n_obs, 1)), obs=adata.obs.copy())


FIELDS = {
    "X": lambda a: a.X.toarray(),
    "layer": lambda a: a.layers["more"],
    "embedding": lambda a: a.obsm["X_pca"],
    "depth alone": lambda a: np.asarray(a.X.sum(1)).mean(0, keepdims=True),
}


@pytest.mark.parametrize("field", list(FIELDS))
def test_whatever_reads_a_test_cell_is_found(adata, field):
    adata.layers["more"] = adata.X.toarray()
    adata.obsm["X_pca"] = adata.X.toarray()[:, :4] - 1.0
    with pytest.raises(cf.DataError, match=r"with garbage in the 15 test cells .*predicted X differs in 15 of 15 cells"):
        poison_test(lambda a: Mean(FIELDS[field](a)), adata)
    assert "stay the same to the bit" in poison_test(lambda a: Mean(FIELDS[field](a[a.obs["split"] == "train"])), adata)


def test_the_data_stay_as_they_are(adata):
    before = adata.copy()

    def greedy(a):
        a.X = a.X * 0
        a.obs["split"] = "train"
        return Mean(np.ones((2, 3)))

    poison_test(greedy, adata)
    assert (adata.X != before.X).nnz == 0 and adata.obs.equals(before.obs)


def test_a_fit_that_does_not_repeat_itself_proves_nothing(adata):
    rng = np.random.default_rng()
    with pytest.raises(cf.DataError, match="proves nothing: two fits on the same data differ"):
        poison_test(lambda a: Mean(rng.normal(size=(2, 3))), adata)


def test_other_genes_and_other_cells_are_said(adata):
    class Genes(Mean):
        def predict(self, adata, conditions):
            return AnnData(np.ones((3, 2)), var=pd.DataFrame(index=[f"G{int(v)}" for v in self.values[0, :2]]))

    class Cells(Mean):
        def predict(self, adata, conditions):
            return AnnData(np.ones((2, 2)), obs=pd.DataFrame(index=[f"c{int(self.values.sum())}", "d"]))

    with pytest.raises(cf.DataError, match="2 of 2 predicted genes are others"):
        poison_test(lambda a: Genes([[a.X.sum(), a.X.sum() + 1]]), adata)
    with pytest.raises(cf.DataError, match="other cells are predicted"):
        poison_test(lambda a: Cells([[a.X.sum()]]), adata)


def test_every_applicable_baseline_passes(adata):
    names = applicable(adata)
    assert len(names) > 5

    def trained(name):
        def fit(a):
            baseline = BASELINES[name]()
            baseline.train(a)
            return baseline

        return fit

    for name in names:
        assert "passed" in poison_test(trained(name), adata), name


def test_nothing_to_spoil_is_an_error(adata):
    with pytest.raises(cf.DataError, match="no cell of adata.obs\\['split'\\] is in 'val'"):
        poison_test(lambda a: Mean(np.ones((2, 2))), adata, subset="val")
    declare(adata, Setup("perturbation", "control"))
    with pytest.raises(cf.DataError, match="nothing is held out"):
        poison_test(lambda a: Mean(np.ones((2, 2))), adata)
