"""Some cells of a file that stays on disk are what the same cells of an AnnData in memory are."""

import anndata
import numpy as np
import pytest

from counterflow.data import stored
from counterflow.data.convert import convert
from counterflow.data.dropping import kept_cells
from counterflow.data.file_rows import is_on_disk, rows_of, some_cells
from counterflow.data.matrix import as_csr
from counterflow.data.schema import Setup, declare, problems
from counterflow.data.screen import read_screen
from counterflow.data.source import StoredCounts, whole
from counterflow.data.stored import is_stored, open_h5ad, read_cells_at


def same(a, b):
    assert a.shape == b.shape and (a != b).nnz == 0


@pytest.mark.parametrize("place", ["file", "cache"])
def test_a_choice_of_a_choice_is_not_read(places, setup, place):
    mask = np.random.default_rng(1).random(places["memory"].n_obs) < 0.7
    at = np.random.default_rng(2).permutation(int(mask.sum()))[:150]
    inside, outside = (some_cells(some_cells(places[name], mask), at) for name in ("memory", place))
    assert outside.X is None and is_stored(outside, None) and not is_on_disk(inside)
    assert np.array_equal(rows_of(outside), np.flatnonzero(mask)[at])
    assert outside.obs.equals(inside.obs) and outside.var.equals(inside.var)
    assert problems(outside, setup) == problems(inside, setup) == []
    for adata in (inside, outside):
        declare(adata, setup)
    one, other = read_screen(inside, setup), read_screen(outside, setup)
    assert isinstance(other.counts, StoredCounts) and one.fingerprint == other.fingerprint
    same(one.counts, whole(other.counts))
    half = outside[:75]  # a view knows its rows, too
    same(read_screen(inside[:75], setup).counts, whole(read_screen(half, setup).counts))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("form", ["counts", "log1p", "layer"])
def test_a_few_cells_are_read_as_they_are_declared(places, tmp_path, cached, form):
    adata = places["memory"].copy()
    adata.obs["total"] = np.asarray(adata.X.sum(1)).ravel() + 3.0
    if form == "layer":
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X * 0.5
    if form == "log1p":
        adata.X = (adata.X.multiply(1e4 / adata.obs["total"].to_numpy()[:, None])).tocsr().log1p().astype(np.float32)
    setup = Setup(
        "perturbation", "control", layer="counts" if form == "layer" else None, library_size_key="total",
        matrix_state="log1p" if form == "log1p" else "counts",
    )  # fmt: skip
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    if cached:
        convert(path, setup)
    keep = np.random.default_rng(1).random(adata.n_obs) < 0.7
    rows = np.random.default_rng(2).permutation(int(keep.sum()))[:40]
    inside, outside = some_cells(adata, keep), some_cells(open_h5ad(path), keep)
    declare(outside, setup)
    assert problems(inside, setup) == problems(outside, setup) == []
    one, other = (read_cells_at(some, setup, rows) for some in (inside, outside))
    assert not is_on_disk(other) and one.obs.equals(other.obs)
    same(as_csr(one, setup.layer), as_csr(other, setup.layer))


@pytest.mark.parametrize("place", ["file", "cache"])
def test_cells_are_left_out_of_a_file_without_reading_the_others(places, place, tmp_path, monkeypatch):
    adata = places["memory"].copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object)
    adata.obs.loc[adata.obs_names[:5], "perturbation"] = None
    path, setup = tmp_path / "spoilt.h5ad", Setup("perturbation", "control", drop_missing=True, drop_empty_cells=True)
    adata.write_h5ad(path)
    if place == "cache":
        convert(path, setup)
    opened = open_h5ad(path)
    monkeypatch.setattr(anndata.AnnData, "to_memory", None)
    kept, expected = kept_cells(opened, setup), kept_cells(adata, setup)
    assert kept.X is None and kept.n_obs == expected.n_obs == adata.n_obs - 6  # of the five, one is empty
    assert kept_cells(kept, setup) is kept
    assert read_screen(kept, setup).fingerprint == read_screen(expected, setup).fingerprint


def test_an_odd_value_is_named_by_its_cell_or_its_row(places, setup, tmp_path, monkeypatch):
    adata = places["memory"].copy()
    row = 20
    adata.X.data[adata.X.indptr[row]] = np.nan
    adata.write_h5ad(tmp_path / "bad.h5ad")
    monkeypatch.setattr(stored, "_known", {})
    opened = open_h5ad(tmp_path / "bad.h5ad")
    (found,) = problems(some_cells(opened, np.arange(10, adata.n_obs)), setup)
    assert f"first in cell {adata.obs_names[row]!r}" in found
    (found,) = problems(some_cells(opened, np.arange(30, adata.n_obs)), setup)
    assert f"first in row {row} of the file" in found


@pytest.mark.parametrize("place", ["file", "cache"])
def test_what_is_saved_with_a_model_is_whole(places, setup, place, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MANY", 10)
    rows = np.arange(0, places["memory"].n_obs, 2)
    opened = open_h5ad(places[place].filename)
    for chosen, expected in ((some_cells(opened, rows), places["memory"][rows]), (opened, places["memory"])):
        stored.writable(chosen, setup).write_h5ad(tmp_path / "saved.h5ad")
        saved = anndata.read_h5ad(tmp_path / "saved.h5ad")
        assert saved.obs.astype(str).equals(expected.obs.astype(str)) and saved.obs_names.tolist() == expected.obs_names.tolist()
        same(as_csr(saved, None), as_csr(expected, None))
