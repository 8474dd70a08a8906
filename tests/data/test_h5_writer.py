"""An h5ad written in blocks: what anndata reads is what was given, and it is there when it is whole."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.h5_writer import H5Writer
from counterflow.errors import DataError


def block(start, n, columns=("kind", "name", "n", "x", "flag", "level")):
    draw = np.random.default_rng(start)
    counts = sparse.csr_matrix(draw.poisson(0.5, (n, 7)).astype(np.float32))
    names = [f"c{start + i}" for i in range(n)]
    values = {
        "kind": [f"k{(start + i) % 3 + start // 10}" for i in range(n)],  # later blocks have other levels
        "name": names,
        "n": np.arange(start, start + n),
        "x": np.linspace(0, 1, n),
        "flag": np.arange(n) % 2 == 0,
        "level": pd.Categorical(["b", None, *(["a"] * (n - 2))], categories=["a", "b"]),
    }
    obs = pd.DataFrame({name: values[name] for name in columns}, index=names)
    layers = {"counts": counts, "mean": draw.random((n, 7), dtype=np.float32)}
    var = pd.DataFrame({"of": range(7)}, index=[f"G{i}" for i in range(7)])
    return AnnData(counts.log1p(), obs=obs, var=var, layers=layers, uns={"how": {"seed": 1, "conditions": ["A", "B+C"]}})


def test_blocks_come_back_as_one(tmp_path):
    blocks = [block(0, 10), block(10, 5), block(20, 8)]
    with H5Writer(tmp_path / "deep" / "cells.h5ad") as file:
        for one in blocks:
            file.add(one)
            assert not (tmp_path / "deep" / "cells.h5ad").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cells.h5ad"]
    found, expected = anndata.read_h5ad(tmp_path / "deep" / "cells.h5ad"), anndata.concat(blocks)
    assert found.obs_names.equals(expected.obs_names) and list(found.obs.columns) == list(expected.obs.columns)
    for name in expected.obs:
        assert found.obs[name].astype(object).equals(expected.obs[name].astype(object)), name
    assert found.obs["kind"].dtype == "category" and found.obs["name"].dtype == object
    assert found.obs["n"].dtype == np.int64 and found.obs["flag"].dtype == bool
    for name in (None, "counts"):
        a, b = (x.X if name is None else x.layers[name] for x in (found, expected))
        assert a.dtype == b.dtype and (a != b).nnz == 0
    assert np.array_equal(found.layers["mean"], expected.layers["mean"])
    assert found.var.equals(blocks[0].var) and found.uns["how"]["seed"] == 1 and list(found.uns["how"]["conditions"]) == ["A", "B+C"]


def test_what_fails_leaves_nothing_and_what_was_there_stays(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), H5Writer(path) as file:
        file.add(block(0, 10))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_cells_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="cells 10 and on have other columns"), H5Writer(tmp_path / "cells.h5ad") as file:
        file.add(block(0, 10))
        file.add(block(10, 10, ("kind",)))
    assert not list(tmp_path.iterdir())
