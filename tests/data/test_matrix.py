"""The expression matrix: every way to store the same numbers gives the same bits, and a damaged one is caught before it is used."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.matrix import TARGET_SUM, as_csr, counts_from_log1p, matrix_problems, raw_matrix, structure_problem
from counterflow.errors import DataError

COUNTS = np.random.default_rng(0).poisson(0.7, (40, 12)).astype(np.float32)
GENES = [f"G{i}" for i in range(12)]


def screen(matrix) -> AnnData:
    return AnnData(matrix, obs=pd.DataFrame(index=[f"c{i}" for i in range(matrix.shape[0])]), var=pd.DataFrame(index=GENES))


def with_unsorted_duplicates() -> sparse.csr_matrix:
    """The same numbers with entries in reverse order, the first one split in two, and an explicit zero."""
    data, indices, indptr = [], [], [0]
    for row in COUNTS:
        columns = np.flatnonzero(row)[::-1]
        values = list(row[columns])
        if len(columns) and values[0] > 1:
            columns, values = np.append(columns, columns[0]), [values[0] - 1, *values[1:], 1.0]
        zero = np.flatnonzero(row == 0)[:1]
        indices += [*columns, *zero]
        data += [*values, *[0.0] * len(zero)]
        indptr.append(len(indices))
    return sparse.csr_matrix((np.array(data, dtype=np.float32), np.array(indices), np.array(indptr)), shape=COUNTS.shape)


FORMS = {
    "dense": lambda: COUNTS.copy(),
    "dense float64": lambda: COUNTS.astype(np.float64),
    "fortran": lambda: np.asfortranarray(COUNTS),
    "csc": lambda: sparse.csc_matrix(COUNTS),
    "int64": lambda: sparse.csr_matrix(COUNTS.astype(np.int64)),
    "uint32": lambda: sparse.csr_matrix(COUNTS.astype(np.uint32)),
    "uint8 dense": lambda: COUNTS.astype(np.uint8),
    "csr array": lambda: sparse.csr_array(COUNTS),
    "csc array": lambda: sparse.csc_array(COUNTS),
    "unsorted, duplicate entries, explicit zeros": with_unsorted_duplicates,
}


def assert_same_bits(found: sparse.csr_matrix, expected: sparse.csr_matrix) -> None:
    assert found.dtype == np.float32 and found.has_canonical_format
    for part in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(found, part), getattr(expected, part)), part


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_bits_of_csr(form):
    adata = screen(FORMS[form]())
    assert matrix_problems(adata, None, "counts") == []
    assert_same_bits(as_csr(adata, None), sparse.csr_matrix(COUNTS))


@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
@pytest.mark.parametrize("where", ["X", "layer"])
def test_backed_files_and_views_too(stored, where, tmp_path):
    matrix = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.array}[stored](COUNTS)
    adata = screen(matrix)
    adata.layers["counts"] = matrix.copy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    layer = None if where == "X" else "counts"
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert matrix_problems(backed, layer, "counts") == []
    assert_same_bits(as_csr(backed, layer), sparse.csr_matrix(COUNTS))
    rows, columns = np.arange(0, 40, 3), np.array([5, 2, 9])
    view = adata[rows, columns]
    assert_same_bits(as_csr(view, layer), sparse.csr_matrix(COUNTS[rows][:, columns]))


def test_booleans_are_counts():
    adata = screen(sparse.csr_matrix(COUNTS > 0))
    assert matrix_problems(adata, None, "counts") == []
    assert np.array_equal(as_csr(adata, None).toarray(), (COUNTS > 0).astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_the_users_matrix_is_never_changed(form):
    adata, before = screen(FORMS[form]()), FORMS[form]()
    csr = as_csr(adata, None)
    csr.data[:] = -1
    if sparse.issparse(before) and form.startswith("unsorted"):
        assert np.array_equal(adata.X.indices, before.indices) and np.array_equal(adata.X.data, before.data)


def corrupt(name: str, make=sparse.csr_matrix):
    matrix = make(COUNTS)
    if name == "index too large":
        matrix.indices[3] = 9999
    elif name == "negative index":
        matrix.indices[3] = -1
    elif name == "pointers go back":
        matrix.indptr[5] = matrix.indptr[9] + 1
    elif name == "pointers beyond the end":
        matrix.indptr[-1] = len(matrix.indices) + 7
    elif name == "fewer values than indices":
        matrix.data = matrix.data[:-2]
    return matrix


CORRUPTIONS = ["index too large", "negative index", "pointers go back", "pointers beyond the end", "fewer values than indices"]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix], ids=["csr", "csc"])
def test_a_corrupt_sparse_matrix_is_caught_before_it_is_densified(name, make):
    adata = screen(make(COUNTS))
    adata._X = corrupt(name, make)
    (problem,) = matrix_problems(adata, None, "counts")
    assert "damaged sparse matrix" in problem
    assert structure_problem(make(COUNTS)) is None


def test_values_are_found_where_they_are():
    for value, word in ((np.nan, "NaN"), (-2.0, "negative")):
        for make in (np.array, sparse.csr_matrix, sparse.csc_matrix):
            bad = COUNTS.copy()
            bad[7, 3] = value
            (problem,) = matrix_problems(screen(make(bad)), None, "counts")
            assert word in problem and "'c7'" in problem and "'G3'" in problem


def test_objects_and_text_are_not_numbers():
    adata = screen(COUNTS.copy())
    adata.layers["text"] = COUNTS.astype(str)
    adata.layers["objects"] = COUNTS.astype(object)
    for layer in ("text", "objects"):
        (problem,) = matrix_problems(adata, layer, "counts")
        assert "dtype" in problem and repr(layer) in problem


def test_no_x_asks_for_a_layer():
    adata = AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=GENES))
    with pytest.raises(DataError, match="layer"):
        raw_matrix(adata, None)


@pytest.mark.parametrize("known_library", [True, False])
def test_counts_behind_log1p_values_are_recovered_exactly(known_library):
    counts = np.random.default_rng(1).poisson(0.8, (60, 200)).astype(np.float64)
    counts[0] = 0  # an empty cell stays empty
    library = counts.sum(1) + 50
    normalised = sparse.csr_matrix(np.log1p(TARGET_SUM * counts / library[:, None]), dtype=np.float32)
    found = counts_from_log1p(normalised, library if known_library else None)
    assert np.array_equal(found.toarray(), counts)


def test_values_that_are_no_counts_are_refused():
    values = sparse.csr_matrix(np.random.default_rng(2).random((30, 40)).astype(np.float32))
    with pytest.raises(DataError, match="cannot be recovered"):
        counts_from_log1p(values, None)
