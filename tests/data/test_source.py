"""The feed: the same bits from memory, from a file in place, and from the cache of it."""

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data import source
from counterflow.data.cache import CacheStore
from counterflow.data.h5_store import H5Store
from counterflow.data.ledger import Ledger
from counterflow.data.schema import Setup, problems
from counterflow.data.screen import read_screen
from counterflow.data.source import StoredCounts, batches, enough, in_memory, take_genes, take_rows, total, whole
from counterflow.data.stored import is_stored, open_h5ad
from counterflow.fitting import encoded, fit_gene_rule, fit_rule, fit_space, states_of, training_steps, vocabulary_of
from counterflow.spaces.expression import ExpressionSpace
from counterflow.spaces.pca import PCASpace

ON_DISK = {"file": H5Store, "cache": CacheStore}


def same(a, b):
    for part in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(a, part), getattr(b, part)), part
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32


@pytest.mark.parametrize("place", ON_DISK)
def test_rows_and_genes_are_those_of_memory(places, setup, place):
    inside, outside = (read_screen(places[where], setup) for where in ("memory", place))
    assert in_memory(inside.counts) and not in_memory(outside.counts)
    assert isinstance(outside.counts, StoredCounts) and isinstance(outside.counts.store, ON_DISK[place])
    rows = np.array([200, 3, 3, 10, 0, 294, 17, 18, 19])
    genes = np.array([5, -1, 2, 29])
    for rows_of in (rows, rows[:1], rows[:0], np.arange(295), slice(5, 9)):
        same(outside.counts[rows_of], inside.counts[rows_of])
    same(whole(outside.counts), inside.counts)
    some = [take_genes(take_rows(counts, rows), genes) for counts in (inside.counts, outside.counts)]
    assert some[0].shape == some[1].shape == (9, 4)
    same(whole(some[1]), whole(some[0]))
    same(some[1][np.array([8, 1])], some[0][np.array([8, 1])])
    twice = [take_genes(counts, np.array([3, 1, -1])) for counts in some]
    same(whole(twice[1]), whole(twice[0]))
    assert total(outside.counts) == total(inside.counts)


@pytest.mark.parametrize("place", ON_DISK)
def test_screens_are_the_same(places, setup, place):
    inside, outside = (read_screen(places[where], setup) for where in ("memory", place))
    assert inside.fingerprint == outside.fingerprint
    for part in ("library", "condition", "context"):
        assert np.array_equal(getattr(inside, part), getattr(outside, part))
    fewer = [screen.rows(screen.is_control) for screen in (inside, outside)]
    assert fewer[0].fingerprint == fewer[1].fingerprint != inside.fingerprint
    fewer_genes = [screen.on_genes(inside.genes[4:1:-1]) for screen in (inside, outside)]
    assert fewer_genes[0].fingerprint == fewer_genes[1].fingerprint != inside.fingerprint


def test_another_count_another_name_or_another_label_is_another_fingerprint(places, setup):
    before = read_screen(places["memory"], setup).fingerprint
    for change in ("count", "name", "label"):
        adata = places["memory"].copy()
        if change == "count":
            adata.X.data[7] += 1
        elif change == "name":
            adata.obs_names = ["other", *adata.obs_names[1:]]
        else:
            labels = adata.obs["perturbation"].astype(str).to_numpy()
            labels[0], labels[1] = labels[np.flatnonzero(labels != labels[0])[0]], labels[1]
            adata.obs["perturbation"] = labels
        assert read_screen(adata, setup).fingerprint != before, change


@pytest.mark.parametrize("place", ON_DISK)
def test_batches_have_the_same_bytes(places, setup, place):
    """Steps 0 to 50, states encoded from the cells of every place."""
    taken = []
    for where in ("memory", place):
        screen = read_screen(places[where], setup)
        space = ExpressionSpace(len(screen.genes))
        fit_space(space, screen, 0, Ledger())
        vocabulary = vocabulary_of(screen, setup, ())
        plan = {"n_sets": 2, "set_size": 16, "seed": 4, "start": 0, "stop": 51}
        taken.append(training_steps(screen, states_of(screen, space), vocabulary, None, setup, anchors=False, **plan))
    for step in range(51):
        a, b = (steps.batch(step) for steps in taken)
        for x, y in zip((a.target, a.control, a.group, a.library, *a.ids), (b.target, b.control, b.group, b.library, *b.ids), strict=True):
            assert x.dtype == y.dtype and x.numpy().tobytes() == y.numpy().tobytes(), step


@pytest.mark.parametrize("place", ON_DISK)
def test_what_is_fitted_is_the_same(places, setup, place, monkeypatch):
    """In blocks so small that every group is cut: the space to the bit, effects to rounding."""
    inside, outside = (read_screen(places[where], setup) for where in ("memory", place))
    rules, spaces = [], []
    for screen in (inside, outside):
        if screen is outside:
            monkeypatch.setattr(source, "BATCH", 20)
        spaces.append(PCASpace(len(screen.genes), 5))
        fit_space(spaces[-1], screen, 0, Ledger())
        rules.append([fit_rule(screen, states_of(screen, spaces[-1]), Ledger()), fit_gene_rule(screen, Ledger())])
    for name, value in spaces[0].state_dict().items():
        assert np.array_equal(value, spaces[1].state_dict()[name]), name
    assert np.array_equal(encoded(spaces[0], inside), encoded(spaces[1], outside))
    for one, other in zip(*rules, strict=True):
        for part in ("effect", "noise", "control"):
            np.testing.assert_allclose(getattr(one.measured, part), getattr(other.measured, part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["memory", *ON_DISK])
def test_a_pass_sees_every_row_once(places, setup, place, monkeypatch):
    monkeypatch.setattr(source, "BATCH", 50)
    counts = take_rows(read_screen(places[place], setup).counts, np.array([9, 4, 100, 250, 7, 8, *range(120, 200)]))
    taken = list(batches(counts))
    assert max(map(len, taken)) <= 50 and len(taken) == 2
    assert sorted(np.concatenate(taken).tolist()) == list(range(86))


def test_the_cells_that_are_enough_are_all_or_a_choice_that_repeats(monkeypatch):
    assert enough(10, 5, 0).tolist() == list(range(10))
    monkeypatch.setattr(source, "ENOUGH", 4)
    chosen = enough(10, 5, 0)
    assert len(set(chosen.tolist())) == 4 and sorted(chosen.tolist()) == chosen.tolist()
    assert np.array_equal(chosen, enough(10, 5, 0)) and not np.array_equal(enough(1000, 5, 0), enough(1000, 5, 1))
    monkeypatch.setattr(source, "_ENOUGH_VALUES", 20)
    assert len(enough(100, 10, 0)) == 2  # of many genes, fewer cells


def matrices():
    counts = np.random.default_rng(1).poisson(0.7, (40, 9)).astype(np.float32)
    counts[4] = 0
    coo = sparse.coo_matrix(counts)
    doubled = sparse.csr_matrix(2 * counts)
    doubled.data = np.repeat(doubled.data, 2) / 2
    doubled.indices, doubled.indptr = np.repeat(doubled.indices, 2), doubled.indptr * 2
    zeros = sparse.csr_matrix(counts)
    zeros.data[zeros.data == 2] = 0
    return {
        "csr": sparse.csr_matrix(counts), "dense": counts, "integers": sparse.csr_matrix(counts.astype(np.int64)),
        "unsorted": sparse.csr_matrix((coo.data[::-1], (coo.row[::-1], coo.col[::-1])), shape=coo.shape),
        "zeros": zeros, "twice": doubled, "large": sparse.csr_matrix(counts * 70000), "log1p": sparse.csr_matrix(np.log1p(counts * 100)),
    }  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("form", matrices())
def test_every_form_of_matrix_on_disk_gives_the_bits_of_memory(form, cached, tmp_path):
    from counterflow.data.convert import convert

    adata = AnnData(matrices()[form])
    adata.obs["gene"] = ["ctrl", "A", "B", "A"] * 10
    declared = Setup("gene", "ctrl", matrix_state="log1p" if form == "log1p" else "counts")
    adata.write_h5ad(tmp_path / "a.h5ad")
    if cached:
        convert(tmp_path / "a.h5ad", declared)
    opened = open_h5ad(tmp_path / "a.h5ad")
    inside, outside = read_screen(adata, declared), read_screen(opened, declared)
    assert isinstance(outside.counts.store, CacheStore if cached else H5Store)
    same(whole(outside.counts), inside.counts)
    assert np.array_equal(inside.library, outside.library)


def test_a_backed_anndata_is_read_in_place_and_a_view_of_it_is_not(places, setup):
    backed = anndata.read_h5ad(places["file"].filename, backed="r")
    assert is_stored(backed, None) and not is_stored(backed[:100], None) and not is_stored(places["memory"], None)
    assert isinstance(read_screen(backed, setup).counts, StoredCounts)
    assert sparse.issparse(read_screen(backed[:100], setup).counts)


def test_layers_stay_on_disk_as_well(places, setup, tmp_path):
    adata = places["memory"].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    adata.write_h5ad(tmp_path / "layers.h5ad")
    opened, declared = open_h5ad(tmp_path / "layers.h5ad"), Setup("perturbation", "control", layer="counts")
    assert not opened.layers
    same(whole(read_screen(opened, declared).counts), read_screen(adata, declared).counts)
    assert problems(opened, Setup("perturbation", "control", layer="count")) == [
        "layer='count' is not in adata.layers: did you mean 'counts'?"
    ]


BAD = {
    "missing": (lambda x: x.data.__setitem__(50, np.nan), "1 values that are NaN or infinite, first in cell"),
    "negative": (lambda x: x.data.__setitem__(50, -1), "1 negative values, first in cell"),
    "fractional": (lambda x: x.data.__setitem__(slice(0, 30), 0.5), "of its non-zero values are not integers"),
    "damaged": (lambda x: x.indices.__setitem__(50, 77), "it holds an index of 77, but there are 30 genes"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_on_disk_is_told_as_it_is_in_memory(bad, places, setup, tmp_path, monkeypatch):
    monkeypatch.setattr("counterflow.data.h5_store.VALUES_AT_ONCE", 40)
    adata = places["memory"].copy()
    spoil, said = BAD[bad]
    spoil(adata.X)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    (found,) = problems(open_h5ad(tmp_path / "bad.h5ad"), setup)
    assert said in found
    if bad != "damaged":  # which cannot be read into memory
        assert problems(adata, setup) == [found]
