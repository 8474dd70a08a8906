"""A matrix stored by genes is turned on disk: the cells come out as they do in memory, whatever stops it."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from scipy import sparse

from counterflow.cli import main
from counterflow.data import csc, stored
from counterflow.data.cache import CacheStore, cache_path
from counterflow.data.convert import convert
from counterflow.data.csc import by_cells, is_by_genes
from counterflow.data.h5_store import H5Store
from counterflow.data.schema import problems
from counterflow.data.screen import read_screen
from counterflow.data.source import whole
from counterflow.errors import DataError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Some 20 pieces and buckets."""
    monkeypatch.setattr(csc, "AT_ONCE", 300)


@pytest.fixture
def path(places, tmp_path):
    adata = places["memory"].copy()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "genes.h5ad")
    return tmp_path / "genes.h5ad"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16])
@pytest.mark.parametrize("shape", [(50, 30), (1, 3), (200, 1), (400, 40)])
def test_every_value_finds_its_cell(shape, dtype, tmp_path):
    draw = np.random.default_rng(0)
    matrix = sparse.csc_matrix(draw.poisson(0.4, shape).astype(dtype))
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        group = handle.create_group("layers/counts")
        group.attrs.update({"encoding-type": "csc_matrix", "shape": shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
    assert is_by_genes(tmp_path / "a.h5", "counts") and not is_by_genes(tmp_path / "a.h5", None)
    out = by_cells(tmp_path / "a.h5", "counts", tmp_path / "rows.h5")
    store, expected = H5Store(out, None, "counts"), matrix.tocsr()
    found = store.raw(0, shape[0])
    assert found.dtype == dtype and found.has_sorted_indices and (found != expected).nnz == 0
    assert np.array_equal(found.indptr, expected.indptr) and np.array_equal(found.indices, expected.indices)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "rows.h5"]


def test_its_cache_is_that_of_the_same_matrix_by_cells(path, places, setup, monkeypatch):
    convert(path, setup)
    turned, straight = cache_path(path), cache_path(places["cache"].filename)
    for name in ("pairs.bin", "start.i8", "place.i4", "totals.f4"):
        assert (turned / name).read_bytes() == (straight / name).read_bytes(), name
    assert sorted(file.name for file in turned.iterdir()) == sorted(file.name for file in straight.iterdir())
    opened = stored.open_h5ad(path)
    assert problems(opened, setup) == []
    screen = read_screen(opened, setup)
    assert isinstance(screen.counts.store, CacheStore) and (whole(screen.counts) != places["memory"].X).nnz == 0


def test_without_its_cache_the_error_names_what_to_do(path, setup, capsys):
    (found,) = problems(stored.open_h5ad(path), setup)
    assert "stored by genes (CSC)" in found and "counterflow convert" in found
    words = ["convert", str(path), "--setup.perturbation_key", "perturbation", "--setup.control", "control", "--quiet"]
    assert main(words) == 0
    capsys.readouterr()


def test_a_turn_that_was_stopped_begins_anew_and_one_that_was_done_is_not_repeated(path, setup, monkeypatch):
    write, calls = csc._write, []

    def stop(*arguments):
        calls.append(0)
        if len(calls) == 30:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(csc, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(path, setup)
    partial = path.with_name(path.name + ".cells.partial")
    assert not cache_path(path).exists() and not list(partial.glob("rows*"))
    monkeypatch.setattr("counterflow.data.convert._finish", stop)
    monkeypatch.setattr(csc, "_write", write)
    calls[:] = [0] * 29
    with pytest.raises(KeyboardInterrupt):
        convert(path, setup)
    (turned,) = partial.glob("rows-*")
    made = turned.stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setattr(csc, "_turn", None)
    convert(path, setup)
    assert made and not partial.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x["indices"].__setitem__(7, 10**6), "an index of 1000000, but there are 295 cells"),
        (lambda x: x["indptr"].__setitem__(3, -1), "column pointers are corrupt"),
    ],
)
def test_a_damaged_one_is_one_error_and_leaves_nothing(path, setup, spoil, said):
    with h5py.File(path, "r+") as handle:
        spoil(handle["X"])
    with pytest.raises(DataError, match=said):
        convert(path, setup)
    assert not cache_path(path).exists() and not list(path.parent.glob("*.partial/rows*"))


def test_a_full_disk_is_told_before(path, setup, monkeypatch):
    monkeypatch.setattr(csc.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"to turn adata.X takes 0.0 GB"):
        convert(path, setup)
