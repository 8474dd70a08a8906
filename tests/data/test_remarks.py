"""What is said without stopping a fit, and what is not said of a good screen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow import CounterFlow
from counterflow.data.remarks import remarks
from counterflow.data.schema import Setup, problems
from counterflow.errors import CounterflowWarning

SETUP = Setup("gene", "ctrl")


def screen(labels=("ctrl", "A"), repeat=100, **columns) -> AnnData:
    n = len(labels) * repeat
    counts = np.random.default_rng(0).poisson(1.0, (n, 6)).astype(np.float32)
    counts[:, 0] = np.arange(n) % 3 + 1
    obs = pd.DataFrame({"gene": list(labels) * repeat, **columns}, index=[f"c{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(counts), obs=obs)


def test_nothing_is_said_of_a_good_screen():
    assert remarks(screen(), SETUP) == []


def test_lost_labels_and_small_groups():
    said = " ".join(remarks(screen(("ctrl", "A", "unassigned"), repeat=63), SETUP))
    assert "'unassigned'" in said and "3 of 3 groups" in said
    two = screen(kind=["x"] * 150 + ["y"] * 50)
    assert "2 of 4 groups of one condition and context" in " ".join(remarks(two, Setup("gene", "ctrl", match_keys=("kind",))))


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_constant_genes_are_counted_in_every_form(make):
    adata = screen()
    dense = adata.X.toarray()
    dense[:, 2], dense[:, 3], dense[:, 4] = 0, 2, [1, 2] * 100
    adata.X = make(dense)
    (said,) = [text for text in remarks(adata, SETUP) if "same value" in text]
    assert said.startswith("2 genes") and "'2', '3'" in said


def test_a_warning_does_not_keep_a_declaration_from_being_written():
    adata = screen(repeat=10)
    with pytest.warns(CounterflowWarning, match="fewer than 64 cells") as caught:
        CounterFlow.setup_anndata(adata, perturbation_key="gene", control="ctrl")
    assert "_counterflow" in adata.uns and caught[0].filename == __file__  # where the user wrote the call


def test_cells_that_are_all_the_same_teach_nothing():
    adata = screen()
    adata.X = sparse.csr_matrix(np.arange(1, 201, dtype=np.float32)[:, None] * np.ones(6, dtype=np.float32))  # of another depth only
    (problem,) = problems(adata, SETUP)
    assert "is the same in all 200 training cells" in problem
    adata.X[0, 0] = 50
    assert problems(adata, SETUP) == []


def test_training_controls_in_every_context():
    adata = screen(kind=["x", "x", "y", "y"] * 50)
    adata.obs["split"] = np.where((adata.obs["kind"] == "y") & (adata.obs["gene"] == "ctrl"), "test", "train")
    (problem,) = problems(adata, Setup("gene", "ctrl", match_keys=("kind",), split_key="split"))
    assert "no control cell in 'train' in 1 levels of match_keys ('y')" in problem


def test_log1p_that_hides_no_counts_is_a_problem_before_training():
    adata = screen()
    adata.X = sparse.csr_matrix(np.log1p(np.random.default_rng(1).random((200, 6))).astype(np.float32))
    (problem,) = problems(adata, Setup("gene", "ctrl", matrix_state="log1p"))
    assert "cannot be recovered" in problem


def test_labels_that_name_nothing():
    (problem,) = problems(screen(("ctrl", "A", "+")), SETUP)
    assert "'+'" in problem and "name nothing" in problem
