"""Reading h5ad files: what can be wrong with a file, said in words."""

from __future__ import annotations

import sys
import types

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from counterflow.data.files import read_h5ad
from counterflow.errors import DataError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "screen.h5ad"
    rng = np.random.default_rng(0)
    AnnData(rng.poisson(1.0, (200, 50)).astype(np.float32), obs=pd.DataFrame({"g": ["a", "b"] * 100})).write_h5ad(path)
    return path


def test_a_good_file_is_read_whole(saved):
    assert read_h5ad(saved).shape == read_h5ad(str(saved)).shape == (200, 50)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_never_gets_through(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="truncated|not an h5ad file|cannot be read"):
        read_h5ad(saved)


def test_hdf5_without_an_anndata_in_it(tmp_path):
    path = tmp_path / "other.h5ad"
    with h5py.File(path, "w") as handle:
        handle["table"] = [1, 2, 3]
    with pytest.raises(DataError, match="holds no AnnData"):
        read_h5ad(path)


def test_a_damaged_column_is_an_error_of_the_file(saved):
    with h5py.File(saved, "a") as handle:
        del handle["obs"]["g"]
    with pytest.raises(DataError, match="cannot be read"):
        read_h5ad(saved)


def test_a_missing_file_names_the_near_one(saved):
    with pytest.raises(DataError, match=r"did you mean 'screen\.h5ad'"):
        read_h5ad(saved.with_name("scren.h5ad"))
    with pytest.raises(DataError, match="does not exist"):
        read_h5ad(saved.parent / "nowhere" / "x.h5ad")


def test_a_missing_file_without_others_beside_it(tmp_path):
    with pytest.raises(DataError) as caught:
        read_h5ad(tmp_path / "nofile.h5ad")
    assert str(caught.value).endswith(f"does not exist, and no .h5ad file is in {str(tmp_path)!r}")
    with pytest.raises(DataError, match="there is no folder"):
        read_h5ad(tmp_path / "nowhere" / "x.h5ad")


@pytest.mark.parametrize("name", ["x" * 400, "a\0b.h5ad"])
def test_names_that_are_no_names(name):
    with pytest.raises(DataError, match="cannot be opened|does not exist"):
        read_h5ad(name)


def test_how_much_of_a_truncated_file_is_there(saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"truncated \({len(content) // 2 / 1e6:.3g} of {len(content) / 1e6:.3g} MB\)"):
        read_h5ad(saved)


def with_filter(path, number):
    """The matrix says that it was compressed by a filter."""
    with h5py.File(path, "a") as handle:
        del handle["X"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 4))
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
        h5py.h5d.create(handle.id, b"X", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4, 4)), plan)


def test_a_compression_that_is_not_here(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with_filter(saved, 480)
    with pytest.raises(DataError, match="HDF5 filter 480 .*write the file again"):
        read_h5ad(saved)
    if not h5py.h5z.filter_avail(32015):
        with_filter(saved, 32015)
        with pytest.raises(DataError, match=r"compressed with zstd \(X\).*counterflow\[big\]"):
            read_h5ad(saved)


def test_a_plugin_that_is_installed_is_tried(saved, monkeypatch):
    """Importing it registers its filters."""
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "hdf5plugin", types.ModuleType("hdf5plugin"))
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: asked.append(number) or len(asked) > 1)
    with_filter(saved, 32015)
    with pytest.raises(DataError) as caught:  # whatever is wrong with it now, it is not the filter
        read_h5ad(saved)
    assert asked == [32015, 32015] and "is compressed with" not in str(caught.value)


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressions_that_come_with_h5py_are_read(tmp_path, compression):
    path = tmp_path / "a.h5ad"
    AnnData(np.eye(20, dtype=np.float32)).write_h5ad(path, compression=compression)
    assert read_h5ad(path).shape == (20, 20)


def test_a_size_that_the_file_cannot_hold(saved):
    """Read as it stands, it would last forever."""
    with h5py.File(saved, "a") as handle:
        handle["layers"].create_dataset("wide", shape=(2**40,), dtype="f4", chunks=(1024,))
    with pytest.raises(DataError, match="layers/wide claims 1,099,511,627,776 values"):
        read_h5ad(saved)
