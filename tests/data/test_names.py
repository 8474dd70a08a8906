"""Names kept as bytes are the names: pandas and AnnData find the same in them as in texts."""

import anndata
import numpy as np
import pandas as pd
import pytest

from counterflow.data import names as module
from counterflow.data import stored
from counterflow.data.file_rows import some_cells
from counterflow.data.ledger import hashes
from counterflow.data.names import Names, cell_names, named_again
from counterflow.data.schema import declare, problems
from counterflow.data.screen import read_screen
from counterflow.data.source import whole
from counterflow.run import fingerprint


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 7)


TEXTS = [f"cell{'é' * (i % 3)}-{i}" for i in range(40)] + ["", "twice", "x", "twice"]


@pytest.fixture
def names():
    return Names.of(TEXTS, len(TEXTS))


def test_they_are_the_texts(names):
    assert list(names) == TEXTS and np.asarray(names).tolist() == TEXTS and len(names) == len(TEXTS)
    assert names[3] == TEXTS[3] and names[-1] == "twice" and list(names[5:30]) == TEXTS[5:30] and list(names[::-5]) == TEXTS[::-5]
    at = np.random.default_rng(0).integers(0, len(TEXTS), 100)
    mask = np.arange(len(TEXTS)) % 3 == 0
    assert list(names[at]) == [TEXTS[i] for i in at] and list(names[mask]) == list(np.array(TEXTS)[mask])
    assert list(names[5:30][at % 25]) == [TEXTS[5:30][i] for i in at % 25]
    order, some = np.random.default_rng(1).permutation(len(TEXTS)), np.random.default_rng(2).permutation(30)
    assert list(names[order][some]) == [TEXTS[order[i]] for i in some] and names[order][some][3] == TEXTS[order[some[3]]]
    assert list(names[order][some][2:9]) == [TEXTS[order[i]] for i in some[2:9]] and list(names[order][[1]]) == [TEXTS[order[1]]]
    assert np.array_equal(hashes(names), hashes(TEXTS))
    assert names.nbytes < 20 * len(TEXTS)
    with pytest.raises(IndexError):
        names[len(TEXTS)]
    assert list(Names.of([], 0)) == []


def test_an_index_of_them_behaves_as_one_of_texts(names):
    ours, theirs = pd.Index(names, name="cell"), pd.Index(TEXTS, name="cell")
    assert (ours == theirs).all() and ours[2:4].tolist() == TEXTS[2:4] and not ours.isna().any()
    assert not ours.is_unique and ours.get_indexer_for(["x", "nobody"]).tolist() == [42, -1]
    a, b = (pd.DataFrame({"n": np.arange(len(TEXTS))}, index=index) for index in (ours, theirs))
    assert np.array_equal(pd.util.hash_pandas_object(a), pd.util.hash_pandas_object(b))
    assert a.loc["x", "n"] == 42 and a.iloc[[5, 2]].index.tolist() == b.iloc[[5, 2]].index.tolist()
    assert pd.concat([a, a]).index.tolist() == TEXTS + TEXTS
    assert a.reset_index()["cell"].tolist() == TEXTS and a.sort_values("n").index.tolist() == TEXTS
    unique = anndata.AnnData(obs=a.iloc[:41])
    assert isinstance(unique.obs_names.array, Names) and unique[[3, 1]].copy().obs_names.tolist() == [TEXTS[3], TEXTS[1]]


def test_names_are_made_unique_as_texts_are(names):
    a, b = (anndata.AnnData(obs=pd.DataFrame(index=index)) for index in (pd.Index(names), pd.Index(TEXTS)))
    for one in (a, b):
        one.obs_names_make_unique()
    assert a.obs_names.tolist() == b.obs_names.tolist() and list(names) == TEXTS


def test_names_that_occur_again_are_found(names):
    for index in (pd.Index(names), pd.Index(TEXTS)):
        assert named_again(index).tolist() == ["twice"] and not len(named_again(index[:42]))
    assert cell_names(pd.Index(names)) is not None and cell_names(pd.Index(TEXTS)).tolist() == TEXTS


@pytest.mark.parametrize("place", ["file", "cache"])
def test_a_file_with_many_cells_is_read_as_one_with_few(places, setup, place, monkeypatch):
    few, path = places[place], places[place].filename
    monkeypatch.setattr(stored, "MANY", 10)
    many = stored.open_h5ad(path)
    assert isinstance(many.obs_names.array, Names) and not isinstance(few.obs_names.array, Names)
    assert many.obs.set_axis(few.obs_names).equals(few.obs) and many.obs_names.tolist() == few.obs_names.tolist()
    monkeypatch.setattr(Names, "__array__", _never)  # nobody makes texts of all
    assert problems(many, setup) == []
    declare(many, setup)
    a, b = read_screen(few, setup), read_screen(many, setup)
    assert a.fingerprint == b.fingerprint
    rows = np.random.default_rng(0).permutation(many.n_obs)[:100]
    assert list(a.rows(rows).cells) == list(b.rows(rows).cells)
    monkeypatch.undo()
    assert fingerprint(few, setup, str(path)) == fingerprint(many, setup, str(path))
    part = some_cells(many, rows)
    assert part.obs_names.tolist() == few.obs_names[rows].tolist()
    assert (whole(read_screen(part, setup).counts) != whole(a.rows(rows).counts)).nnz == 0


def _never(self, dtype=None, copy=None):
    assert len(self) <= 100
    return np.array(list(self), dtype=object)


def test_names_that_are_no_texts_and_other_columns_are_read_as_before(places, tmp_path, monkeypatch):
    adata = places["memory"].copy()
    adata.obs["flag"], adata.obs["n"] = np.arange(adata.n_obs) % 2 == 0, np.arange(adata.n_obs) / 3
    adata.obs.index.name = "barcode"
    adata.obs["text"] = [f"t{i}" for i in range(adata.n_obs)]
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = stored.open_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(stored, "MANY", 10)
    after = stored.open_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(after.obs.set_axis(before.obs_names), before.obs)
    assert after.obs_names.name == before.obs_names.name == "barcode"
