"""What `doctor` accepts, `fit` accepts, and the reverse; nothing but our errors comes out of either."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import counterflow as cf
from counterflow.errors import CounterflowError

TINY = {"backbone_kwargs": {"width": 8, "depth": 1}, "encoder_kwargs": {"width": 8}, "keep_controls": 4}
GOOD_LABELS = (
    ("ctrl", "A+ctrl", "ctrl+B", "A+B"),
    ("control", "A", "B", "A_B"),
    ("non-targeting", "G1", "G2", "G1+G2"),
    ("DMSO", "drug 1", "drug 2"),
)
ODD_LABELS = (
    ("NT", "Perturbed"),
    ("control", "A", ""),
    ("control", "A", "nan"),
    ("control", "+"),
    ("control",),
    ("A", "B"),
)
MATRICES = (
    "counts", "csc", "dense", "int", "log1p", "log1p of something else", "centred", "nan", "zeros", "halves", "huge", "unsorted", "corrupt",
)  # fmt: skip


@st.composite
def screens(draw) -> AnnData:
    """Small screens, good and bad."""

    def often() -> bool:
        return bool(draw(st.integers(0, 5)))

    n, g = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    counts = rng.poisson(draw(st.sampled_from((0.3, 2.0))), (n, g)).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)] if often() else ["c"] * n)
    labels = draw(st.sampled_from(GOOD_LABELS if often() else ODD_LABELS))
    column = draw(st.sampled_from(("perturbation", "condition", "target_gene", "what")))
    obs[column] = pd.Series(rng.choice(labels, n), index=obs.index).to_numpy()
    for name, levels in (
        ("cell_type", ("x", "y", None)),
        ("donor", (1, 2)),
        ("dose", ("0", "1", "1+2", "much")),
        ("time", (0.0, 6.0, -1.0)),
        ("total_counts", (30.0, 500.0, 0.0)),
        ("split", ("train", "test", "val")),
        ("control", (0, 1)),
    ):
        if not often():
            some = draw(st.lists(st.sampled_from(levels), min_size=1, max_size=3))
            obs[name] = np.array(rng.choice(np.array(some, dtype=object), n), dtype=object)
    if not often():
        obs.loc[rng.random(n) < 0.2, column] = None
    if draw(st.booleans()):
        obs[column] = obs[column].astype("category")
    names = [f"G{i}" for i in range(g)]
    if draw(st.integers(0, 7)) == 0:
        names[-1] = names[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(matrix(counts, "counts" if draw(st.booleans()) else draw(st.sampled_from(MATRICES)), rng), obs=obs)
        adata.var_names = names
    return adata


def matrix(counts: np.ndarray, kind: str, rng: np.random.Generator) -> object:
    library = np.maximum(counts.sum(1, keepdims=True), 1)
    csr = sparse.csr_matrix(counts)
    if kind == "corrupt" and csr.nnz:
        csr.indices[0] = 99
    elif kind == "unsorted":
        csr = sparse.csr_matrix((csr.data[::-1].copy(), csr.indices[::-1].copy(), (csr.nnz - csr.indptr)[::-1].copy()), shape=csr.shape)
    other = {
        "csc": lambda: sparse.csc_matrix(counts),
        "dense": lambda: counts,
        "int": lambda: sparse.csr_matrix(counts.astype(np.int64)),
        "log1p": lambda: sparse.csr_matrix(np.log1p(1e4 * counts / library)),
        "log1p of something else": lambda: np.log1p(counts * rng.random(counts.shape)),
        "centred": lambda: counts - counts.mean(),
        "nan": lambda: np.where(rng.random(counts.shape) < 0.1, np.nan, counts),
        "zeros": lambda: sparse.csr_matrix(counts.shape, dtype=np.float32),
        "halves": lambda: counts / 2,
        "huge": lambda: counts.astype(np.float64) * 2**24,
    }
    return other[kind]() if kind in other else csr


def agree(adata: AnnData, anchor: str) -> None:
    before = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = cf.doctor(adata)
        str(diagnosis)
        assert adata.obs.equals(before.obs) and not adata.uns
        if diagnosis.setup is None:
            return
        said = ""
        try:
            cf.CounterFlow.setup_anndata(adata, **diagnosis.setup.to_dict())
            cf.CounterFlow(adata, anchor=anchor, **TINY).train(max_steps=1, batch_size=8, progress=False)
        except CounterflowError as error:
            said = str(error)
    assert bool(diagnosis.problems) == bool(said), f"doctor: {diagnosis.problems}; fit: {said or 'accepted'}; {diagnosis.setup}"


BOUNDED = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@settings(max_examples=25, **BOUNDED)
@given(screens())
def test_fit_takes_what_the_doctor_takes(adata):
    agree(adata, "none")


@pytest.mark.slow
@settings(max_examples=1500, **BOUNDED | {"derandomize": False})
@given(screens(), st.sampled_from(("none", "additive")))
def test_fit_takes_what_the_doctor_takes_many(adata, anchor):
    agree(adata, anchor)
