"""From an AnnData to arrays: the same screen however it is written down."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.schema import Setup
from counterflow.data.screen import describe, gene_positions, read_cells, read_screen, read_specs, requested
from counterflow.errors import ConfigError, DataError
from counterflow.types import ConditionSpec

COUNTS = np.random.default_rng(0).poisson(1.5, (24, 8)).astype(np.float32)
GENES = [f"G{i}" for i in range(8)]


def screen(**columns) -> AnnData:
    obs = pd.DataFrame({"gene": ["ctrl", "A", "B+A", "A+B", "A+ctrl", " ctrl"] * 4} | columns, index=[f"c{i}" for i in range(24)])
    return AnnData(sparse.csr_matrix(COUNTS), obs=obs, var=pd.DataFrame(index=GENES))


def test_conditions_are_sets_and_the_control_comes_first():
    found = read_screen(screen(), Setup("gene", "ctrl"))
    assert found.conditions == (ConditionSpec(), ConditionSpec(("A",), (1.0,)), ConditionSpec(("A", "B"), (1.0, 1.0)))
    assert found.condition.tolist() == [0, 1, 2, 2, 1, 0] * 4
    assert np.array_equal(found.counts.toarray(), COUNTS) and np.array_equal(found.library, COUNTS.sum(1))


def test_a_view_a_copy_and_another_dtype_read_the_same():
    whole = screen(kind=["x", "y"] * 12)
    rows = np.arange(0, 24, 2)
    setup = Setup("gene", "ctrl", covariate_keys=("kind",))
    view, copy = read_screen(whole[rows], setup), read_screen(whole[rows].copy(), setup)
    whole.X = whole.X.astype(np.int32)
    integers = read_screen(whole[rows], setup)
    for other in (copy, integers):
        assert np.array_equal(view.counts.toarray(), other.counts.toarray()) and view.conditions == other.conditions
        assert view.covariates.equals(other.covariates) and np.array_equal(view.condition, other.condition)


def test_reading_changes_nothing():
    adata = screen()
    adata.X.data[:] = adata.X.data[::-1].copy()
    before = adata.copy()
    read_screen(adata, Setup("gene", "ctrl"))
    assert np.array_equal(adata.X.data, before.X.data) and adata.obs.equals(before.obs) and not adata.uns


def test_genes_are_selected_by_name():
    found = read_screen(screen(), Setup("gene", "ctrl"), ("G5", "G1"))
    assert np.array_equal(found.counts.toarray(), COUNTS[:, [5, 1]])
    assert np.array_equal(found.library, COUNTS.sum(1))  # of the whole cell


def test_doses_follow_their_parts_and_time_is_read():
    adata = screen(dose=["0", "2", "1+3", "3+1", "5", "0"] * 4, time=[0, 1, 2, 2, 3, 0] * 4)
    specs = read_specs(adata.obs, Setup("gene", "ctrl", dose_key="dose", time_key="time"))
    assert specs[1] == ConditionSpec(("A",), (2.0,), 1.0)
    assert specs[2] == specs[3] == ConditionSpec(("A", "B"), (3.0, 1.0), 2.0)  # "B+A" at 1+3 is "A+B" at 3+1
    assert specs[4] == ConditionSpec(("A",), (5.0,), 3.0) and specs[0] == ConditionSpec()


def test_contexts_are_joint_levels_of_the_match_keys():
    adata = screen(kind=["x", "y"] * 12, donor=[1] * 12 + [2] * 12)
    found = read_screen(adata, Setup("gene", "ctrl", match_keys=("kind", "donor")))
    assert found.contexts == (("x", "1"), ("x", "2"), ("y", "1"), ("y", "2"))
    assert [found.contexts[c] for c in found.context[:2]] == [("x", "1"), ("y", "1")]


def test_log1p_files_give_the_counts_back():
    adata = screen(n=COUNTS.sum(1))
    normalised = np.log1p(1e4 * COUNTS / COUNTS.sum(1, keepdims=True))
    adata.X = sparse.csr_matrix(normalised)
    found = read_screen(adata, Setup("gene", "ctrl", matrix_state="log1p", library_size_key="n"))
    assert np.array_equal(found.counts.toarray(), COUNTS)


def test_cells_to_start_from():
    cells, positions = read_cells(screen()[:, ::-1], Setup("gene", "ctrl"), GENES)  # another order of the genes
    assert positions.tolist() == [i for i in range(24) if i % 6 in (0, 5)]
    assert np.array_equal(cells.counts.toarray(), COUNTS[positions])
    adata = screen()
    del adata.obs["gene"]  # nothing need have been done to them
    assert len(read_cells(adata, Setup("gene", "ctrl"), GENES)[1]) == 24


def test_cells_that_cannot_be_started_from():
    setup = Setup("gene", "ctrl", covariate_keys=("kind",))
    with pytest.raises(DataError, match="no column 'kind'"):
        read_cells(screen(), setup, GENES)
    with pytest.raises(DataError, match="none of these cells is a control"):
        read_cells(screen()[1:3], Setup("gene", "ctrl"), GENES)
    with pytest.raises(DataError, match="no cells"):
        read_cells(screen()[:0], Setup("gene", "ctrl"), GENES)
    for depth in ("many", np.nan, -1.0):
        with pytest.raises(DataError, match="library_size_key='depth' must hold numbers >= 0"):
            read_cells(screen(depth=depth), Setup("gene", "ctrl", library_size_key="depth"), GENES)


def test_genes_that_are_missing():
    with pytest.raises(DataError, match=r"1 of the model's 2 genes .*'X1'"):
        gene_positions(GENES, ["G1", "X1"])
    with pytest.raises(DataError, match="Ensembl"):
        gene_positions(["ENSG00000141510", "ENSG00000012048"], ["TP53", "BRCA1"])
    with pytest.raises(DataError, match="Ensembl"):
        read_cells(screen(), Setup("gene", "ctrl"), ["ENSG00000141510"])
    assert gene_positions([*GENES, "extra", "extra"], ["G3", "G0"]).tolist() == [3, 0]
    with pytest.raises(DataError, match="1 genes of the model are in var_names more than once .*'G3'"):
        gene_positions([*GENES, "G3"], ["G3", "G0"])


def test_what_is_asked_for():
    setup = Setup("gene", "ctrl", time_key="time")
    with pytest.raises(ConfigError, match="'time'"):
        requested("A", setup)
    with pytest.raises(ConfigError, match="tim.*did you mean 'time'"):
        requested(pd.DataFrame({"gene": ["A"], "tim": [1]}), setup)
    with pytest.raises(ConfigError, match="empty"):
        requested([], Setup("gene", "ctrl"))
    (spec,) = read_specs(requested(pd.DataFrame({"gene": ["B+A"], "time": [3]}), setup), setup)
    assert spec == ConditionSpec(("A", "B"), (1.0, 1.0), 3.0) and describe(spec, setup) == "A+B time 3"
