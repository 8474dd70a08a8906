"""Reading h5ad files: what can be wrong with a file, said in words."""

from __future__ import annotations

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
