"""Plots: they return the Axes they were given, show what they say, and refuse what would mislead."""

import matplotlib
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from counterflow import DataError, pl


def cells(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    values = np.log1p(rng.poisson(5 * np.exp(shift), (n, 12)).astype(np.float32))
    adata = AnnData(sparse.csr_matrix(values))
    adata.var_names = [f"G{i:02d}" for i in range(12)]
    return adata


@pytest.fixture
def groups():
    shift = np.zeros(12)
    shift[[3, 7]] = 1.5, -2.0
    return cells(80, 0), cells(30, 1, shift), cells(40, 2, shift)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_embedding_puts_predicted_cells_where_they_are(groups, ax):
    control, real, predicted = groups
    assert pl.embedding(control, real, predicted, ax=ax) is ax
    assert sorted(legend(ax)) == ["control (80)", "predicted (40)", "real (30)"]
    by_size = {len(drawn.get_offsets()): drawn.get_offsets().mean(0) for drawn in ax.collections if len(drawn.get_offsets()) > 1}
    assert np.linalg.norm(by_size[40] - by_size[30]) < 0.3 * np.linalg.norm(by_size[40] - by_size[80])
    assert "PC1" in ax.get_xlabel() and "%" in ax.get_xlabel()


def test_embedding_without_real_cells(groups, ax):
    pl.embedding(groups[0], None, groups[2], ax=ax)
    assert len(legend(ax)) == 2


def test_effect_shows_r_and_names_the_largest_genes(ax):
    true = np.linspace(-1, 1, 11)
    assert pl.effect(true, {"model": 2 * true, "opposite": -true}, genes=[f"G{i}" for i in range(11)], n_labels=2, ax=ax) is ax
    assert legend(ax) == ["model, r = 1.00", "opposite, r = -1.00"]
    assert {text.get_text() for text in ax.texts} == {"G0", "G10"}
    with pytest.raises(DataError, match="'predicted' has 10 genes and the true effect 11"):
        pl.effect(true, true[1:], ax=ax)


def test_no_effect_has_no_correlation(ax):
    pl.effect(np.linspace(-1, 1, 5), {"control": np.zeros(5)}, ax=ax)
    assert legend(ax) == ["control, r = nan"]


def test_top_genes_are_those_that_change_in_the_real_cells(groups, ax):
    assert pl.top_genes(*groups, n_genes=2, ax=ax) is ax
    assert {label.get_text() for label in ax.get_xticklabels()} == {"G03", "G07"}
    assert legend(ax) == ["control", "real", "predicted"]
    with pytest.raises(DataError, match="did you mean 'G03'"):
        pl.top_genes(*groups, genes=["G3"], ax=ax)


def test_save_writes_a_picture_and_genes_go_by_name(groups, tmp_path):
    control, real, predicted = groups
    ax = pl.embedding(control[:, ::-1], real, predicted, save=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    other = pl.embedding(control, real, predicted)
    for a, b in zip(ax.collections, other.collections, strict=True):
        np.testing.assert_allclose(a.get_offsets(), b.get_offsets(), atol=1e-5)
    plt.close("all")


def test_counts_and_other_genes_are_refused(groups, ax):
    control, real, predicted = groups
    counts = control.copy()
    counts.X = counts.X * 100
    with pytest.raises(DataError, match="not log1p"):
        pl.embedding(counts, real, predicted, ax=ax)
    with pytest.raises(DataError, match="first: 'G00'"):
        pl.top_genes(control[:, 1:], real, predicted, ax=ax)


def test_nothing_is_written_into_the_cells(groups, ax):
    before = [group.X.toarray() for group in groups]
    pl.top_genes(*groups, ax=ax)
    pl.embedding(*groups, ax=ax)
    assert all((group.X.toarray() == values).all() for group, values in zip(groups, before, strict=True))
