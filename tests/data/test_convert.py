"""From an h5ad to its cache: the same counts, whatever stops it and whatever is there already."""

import json
import os
import shutil

import numpy as np
import pytest

from counterflow.data import convert as converting
from counterflow.data import stored
from counterflow.data.cache import CacheStore, cache_path
from counterflow.data.convert import convert
from counterflow.data.schema import Setup, declare
from counterflow.data.screen import read_screen
from counterflow.errors import DataError


@pytest.fixture
def path(places, monkeypatch):
    """A file without a cache, read in some 20 blocks; how far a conversion is, is noted after each of them."""
    monkeypatch.setattr("counterflow.data.h5_store.VALUES_AT_ONCE", 300)
    monkeypatch.setattr(converting, "_EVERY", 0.0)
    return places["file"].filename


def content(cache):
    return {file.name: file.read_bytes() for file in cache.iterdir() if file.name not in ("meta.json", "genes.npz")}


def test_cells_of_a_condition_and_context_are_side_by_side(path, setup):
    store = CacheStore(convert(path, setup))
    screen = read_screen(stored.open_h5ad(path), setup)
    group = (screen.context * 1000 + screen.condition)[np.argsort(store.order(np.arange(store.shape[0])))]
    assert np.count_nonzero(np.diff(group)) + 1 == len(set(group.tolist()))
    assert os.path.getsize(cache_path(path) / "pairs.bin") == 4 * store.n_values


def test_a_conversion_that_was_stopped_goes_on_and_gives_the_same_bytes(path, setup, monkeypatch):
    expected = content(convert(path, setup))
    shutil.rmtree(cache_path(path))
    put, calls = converting._put, []

    def stop(*arguments):
        calls.append(0)
        if len(calls) == 12:
            raise KeyboardInterrupt
        put(*arguments)

    monkeypatch.setattr(converting, "_put", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(path, setup)
    assert not cache_path(path).exists() and cache_path(path).with_name(path.name + ".cells.partial").is_dir()
    declare(stored.open_h5ad(path), setup)  # which takes no notice of what is not complete
    n_blocks = len(converting.H5Store(path, None, "counts").blocks())
    assert content(convert(path, setup)) == expected
    assert len(calls) == n_blocks + 1 > 15  # the eleven before were not done again
    assert not cache_path(path).with_name(path.name + ".cells.partial").exists()


def test_one_of_another_file_begins_anew(path, setup, places, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(converting, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(path, setup)
    monkeypatch.undo()
    places["memory"].X.data[:] += 1
    places["file"].file.close()
    places["memory"].write_h5ad(path)
    convert(path, setup)
    assert CacheStore(cache_path(path)).facts().totals.sum() == places["memory"].X.sum()


def test_a_good_cache_is_kept_and_verified(path, setup):
    cache = convert(path, setup)
    before = (cache / "pairs.bin").stat().st_mtime_ns
    assert convert(path, setup) == cache and (cache / "pairs.bin").stat().st_mtime_ns == before
    with (cache / "pairs.bin").open("r+b") as handle:
        handle.seek(100)
        byte = handle.read(1)
        handle.seek(100)
        handle.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=r"pairs.bin is not what was written.*delete it"):
        convert(path, setup)
    convert(path, setup, overwrite=True)
    CacheStore(cache).verify()


@pytest.mark.parametrize("name", ["pairs.bin", "start.i8", "place.i4", "totals.f4", "genes.npz", "meta.json"])
def test_a_damaged_cache_is_refused(path, setup, name, monkeypatch):
    cache = convert(path, setup)
    monkeypatch.setattr(stored, "_known", {})
    os.truncate(cache / name, (cache / name).stat().st_size - 4)
    with pytest.raises(DataError, match="damaged cache"):
        declare(stored.open_h5ad(path), setup)


def test_a_newer_cache_asks_for_an_upgrade(path, setup):
    cache = convert(path, setup)
    meta = json.loads((cache / "meta.json").read_text())
    (cache / "meta.json").write_text(json.dumps(meta | {"schema": 2}))
    with pytest.raises(DataError, match="newer version"):
        CacheStore(cache)


def test_a_cache_of_a_file_that_changed_is_refused_and_a_touched_file_is_the_same(path, setup, places, monkeypatch):
    convert(path, setup)
    os.utime(path)
    monkeypatch.setattr(stored, "_known", {})
    assert isinstance(read_screen(stored.open_h5ad(path), setup).counts.store, CacheStore)
    places["file"].file.close()
    with open(path, "r+b") as handle:
        handle.seek(-10, os.SEEK_END)
        handle.write(b"x" * 10)
    monkeypatch.setattr(stored, "_known", {})
    with pytest.raises(DataError, match="as it was before it changed"):
        stored.stored(places["file"], setup)


def test_a_matrix_that_is_not_as_declared_makes_no_cache(places, setup, tmp_path):
    places["memory"].X.data[7] = 0.5
    places["memory"].write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match="not integers"):
        convert(tmp_path / "bad.h5ad", setup)
    assert [file.name for file in tmp_path.glob("bad*")] == ["bad.h5ad"]


def test_another_matrix_of_the_file_has_no_use_of_the_cache(places, setup, tmp_path, monkeypatch):
    places["memory"].layers["other"] = places["memory"].X * 2
    places["memory"].write_h5ad(tmp_path / "two.h5ad")
    convert(tmp_path / "two.h5ad", setup)
    other = Setup(**{**setup.__dict__, "layer": "other"})
    assert not isinstance(read_screen(stored.open_h5ad(tmp_path / "two.h5ad"), other).counts.store, CacheStore)
    with pytest.raises(DataError, match="another matrix of this file"):
        convert(tmp_path / "two.h5ad", other)


def test_a_full_disk_is_told_before_anything_is_written(path, setup, monkeypatch):
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DataError, match=r"takes .* GB, and .* GB are free"):
        convert(path, setup)


def test_a_column_that_is_not_there_is_named(path):
    with pytest.raises(DataError, match="no column 'perturbatoin': did you mean 'perturbation'"):
        convert(path, Setup("perturbatoin", "control"))
