"""The declaration: what is stored, what survives a file, and which labels are controls."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from counterflow.data.schema import UNS_KEY, Setup, declare, is_control_mask, parse_doses, problems, setup_of
from counterflow.errors import DataError


def screen(labels, **columns) -> AnnData:
    counts = np.random.default_rng(0).poisson(2.0, (len(labels), 6)).astype(np.float32)
    obs = pd.DataFrame({"gene": labels, **columns}, index=[f"c{i}" for i in range(len(labels))])
    return AnnData(counts, obs=obs)


LABELS = ["ctrl", "A", "B", "A+B"] * 5


def test_declaring_writes_one_entry_and_nothing_else():
    adata = screen(LABELS, kind=["x"] * 8 + ["y"] * 12)
    before = adata.copy()
    declare(adata, Setup("gene", "ctrl", match_keys=("kind",)))
    assert set(adata.uns) == {UNS_KEY}
    assert adata.obs.equals(before.obs) and np.array_equal(adata.X, before.X) and not adata.layers
    assert setup_of(adata) == Setup("gene", "ctrl", match_keys=("kind",))


def test_the_declaration_survives_a_file(tmp_path):
    adata = screen(LABELS, kind=["x", "y"] * 10, hours=[0.0, 1.0, 2.0, 3.0] * 5)
    setup = Setup("gene", "ctrl", covariate_keys=("kind",), time_key="hours")
    declare(adata, setup)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert setup_of(anndata.read_h5ad(tmp_path / "a.h5ad")) == setup


def test_a_bad_declaration_leaves_an_earlier_one_alone():
    adata = screen(LABELS)
    declare(adata, Setup("gene", "ctrl"))
    with pytest.raises(DataError):
        declare(adata, Setup("gen", "ctrl"))
    assert setup_of(adata) == Setup("gene", "ctrl")


def test_one_name_or_several():
    one, several = (Setup.from_dict({"perturbation_key": "g", "control": "c", "match_keys": keys}) for keys in ("kind", ["kind"]))
    assert one == several and one.match_keys == ("kind",)
    with pytest.raises(DataError, match="did you mean 'match_keys'"):
        Setup.from_dict({"perturbation_key": "g", "control": "c", "match_key": "kind"})


@pytest.mark.parametrize("labels", [[0, 1, 2, 1] * 5, pd.Categorical([0, 1, 2, 1] * 5), ["0", "1", "2", "1"] * 5])
def test_labels_may_be_numbers(labels):
    adata = screen(labels)
    for control in ("0", 0):
        setup = Setup.from_dict({"perturbation_key": "gene", "control": control})
        assert problems(adata, setup) == []
        assert is_control_mask(adata.obs["gene"].astype(str), setup).sum() == 5


def test_labels_may_be_booleans():
    adata = screen([True, False] * 10)
    assert problems(adata, Setup("gene", "False")) == []


def test_control_beside_a_gene_is_the_gene_alone():
    mask = is_control_mask(pd.Series(["ctrl", " ctrl ", "ctrl+ctrl", "A+ctrl", "A", ""]), Setup("gene", "ctrl"))
    assert mask.tolist() == [True, True, True, False, False, True]


def test_repeated_cell_names_are_allowed():
    adata = screen(LABELS)
    adata.obs_names = ["same"] * len(LABELS)
    assert problems(adata, Setup("gene", "ctrl")) == []


@pytest.mark.parametrize(
    ("value", "n", "expected"), [("2", 1, (2.0,)), ("2", 2, (2.0, 2.0)), ("1+0.5", 2, (1.0, 0.5)), ("1e+3", 1, (1000.0,)), ("7", 0, ())]
)
def test_doses(value, n, expected):
    assert parse_doses(value, n, Setup("gene", "ctrl")) == expected


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "much", "1+2+3"])
def test_doses_that_are_none(value):
    with pytest.raises(DataError, match="dose"):
        parse_doses(value, 2, Setup("gene", "ctrl"))
