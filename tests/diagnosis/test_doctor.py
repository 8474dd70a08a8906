"""The doctor recognises the labelings of other tools, proposes a declaration that works, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.diagnosis.columns import COLUMN_NAMES
from counterflow.diagnosis.controls import control_labels, delimiter_of
from counterflow.diagnosis.doctor import doctor

DATA = Path(os.environ.get("COUNTERFLOW_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def screen(labels: list[str], column: str = "perturbation", repeat: int = 40, **columns) -> AnnData:
    n = len(labels) * repeat
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (n, 20)).astype(np.float32))
    obs = pd.DataFrame({column: labels * repeat} | columns, index=[f"c{i}" for i in range(n)])
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(20)]))


@pytest.mark.parametrize(
    "label",
    ["control", "ctrl", "non-targeting", "NT", "NTC", "DMSO", "vehicle", "unstimulated", "Non_Targeting", "neg_ctrl", "untreated", "mock",
     "safe-targeting", "AAVS1", "ctrl+ctrl", "NT_NT", "PBS", "scramble", "negative control"],
)  # fmt: skip
def test_control_labels_of_other_tools(label):
    diagnosis = doctor(screen([label, "KLF1", "MAP2K6", "TP53"]))
    assert diagnosis.setup is not None and diagnosis.setup.control == label


@pytest.mark.parametrize("label", ["CTRL1B", "NTRK1", "CONTROL_GENE_7", "DMSOX", "WT1"])
def test_genes_are_not_controls(label):
    found = control_labels({label: 10, "control": 1})
    assert next(iter(found)) == "control"


@pytest.mark.parametrize(
    ("labels", "control", "delimiter"),
    [
        (["ctrl", "A+ctrl", "ctrl+B", "A+B"], "ctrl", "+"),  # GEARS
        (["ctrl", "A", "B", "A_B"], "ctrl", "_"),
        (["control", "A", "B", "C", "A+B", "B+C"], "control", "+"),
        (["non-targeting", "A", "B", "A|B"], "non-targeting", "|"),
        (["control", "HLA-A", "HLA-B", "TP53"], "control", "+"),  # a hyphen in a name joins nothing
        (["DMSO", "drug_1", "drug_2"], "DMSO", "+"),
    ],
)
def test_delimiters(labels, control, delimiter):
    assert delimiter_of(labels, control) == delimiter
    assert doctor(screen(labels)).setup.delimiter == delimiter


@pytest.mark.parametrize("column", COLUMN_NAMES["perturbation"])
def test_perturbation_columns_of_other_tools(column):
    diagnosis = doctor(screen(["ctrl", "A", "B"], column, cell_type=["x", "y", "x", "y"] * 30))
    assert diagnosis.setup.perturbation_key == column and diagnosis.setup.match_keys == ("cell_type",)


def test_a_column_of_an_unusual_name_is_found_by_its_control():
    diagnosis = doctor(screen(["ctrl", "A", "B"], "what_was_done"))
    assert diagnosis.setup.perturbation_key == "what_was_done"


def test_contexts_without_controls_are_not_matched():
    adata = screen(["ctrl", "A"], cell_type=["x", "y"] * 40)  # every control is x
    assert doctor(adata).setup.match_keys == ()


def test_counts_in_a_layer_are_preferred_to_log1p_in_x():
    adata = screen(["ctrl", "A", "B"])
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X * 1.7)
    found = doctor(adata)
    assert found.setup.layer == "counts" and found.setup.matrix_state == "counts" and "X: log1p" in found.matrix
    del adata.layers["counts"]
    assert doctor(adata).setup.matrix_state == "log1p"
    adata.X = adata.X - 1.0 * (adata.X > 0).astype(float)
    assert any("negative" in problem for problem in doctor(adata).problems)


def test_dose_time_and_library():
    adata = screen(["DMSO", "drugA", "drugB"], "drug", dose=[0.0, 1.0, 10.0] * 40, hours=[0, 6, 24] * 40)
    adata.obs["total_counts"] = np.asarray(adata.X.sum(1)).ravel() * 5
    setup = doctor(adata).setup
    assert (setup.dose_key, setup.time_key, setup.library_size_key) == ("dose", "hours", "total_counts")
    adata.obs["total_counts"] = np.asarray(adata.X.sum(1)).ravel()  # the sums themselves: nothing to declare
    assert doctor(adata).setup.library_size_key is None


@pytest.mark.parametrize(
    ("arguments", "split"),
    [
        (SMALL, "unseen_combination"),
        (SMALL | {"n_pairs": 0}, "unseen_perturbation"),
        (SMALL | {"n_pairs": 0, "n_perturbations": 1}, "unseen_context"),
        (SMALL | {"n_pairs": 0, "times": (1.0, 3.0)}, "unseen_time"),
    ],
)
def test_the_suggested_split_can_be_built_and_the_proposal_fitted(arguments, split):
    adata = simulate_screen(**arguments).adata
    before = adata.copy()
    diagnosis = doctor(adata)
    assert diagnosis.split == split and diagnosis.problems == ()
    assert adata.obs.equals(before.obs) and not set(adata.uns) - set(before.uns)
    exec(diagnosis.python, {"cf": cf, "adata": adata})
    assert adata.uns["_counterflow"]["perturbation_key"] == "perturbation"
    setup = yaml.safe_load(diagnosis.yaml)["setup"]
    cf.CounterFlow.setup_anndata(adata, **setup)


def test_the_report_can_be_pasted(tmp_path):
    path = tmp_path / "screen.h5ad"
    simulate_screen(**SMALL).adata.write_h5ad(path)
    text = str(doctor(path))
    assert "setup_anndata(adata, perturbation_key='perturbation', control='control'" in text and str(path) in text


def test_problems_and_notes_are_listed_together():
    adata = screen(["ctrl", "NT", "A", "B"], repeat=12)
    adata.var_names = ["G0", *adata.var_names[:-1]]
    adata.X.data[0] = np.nan
    diagnosis = doctor(adata)
    assert len(diagnosis.problems) == 2 and diagnosis.split is None
    notes = " ".join(diagnosis.notes)
    assert "'NT'" in notes and "fewer than 30 cells" in notes and "only 12 control cells" in notes


def test_a_file_it_does_not_understand():
    adata = AnnData(np.ones((30, 4), dtype=np.float32), obs=pd.DataFrame({"age": np.arange(30)}, index=[f"c{i}" for i in range(30)]))
    diagnosis = doctor(adata)
    assert diagnosis.setup is None and "no declaration" in str(diagnosis)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("norman2019_k562_crispra", "unseen_combination"),
        ("kang2018_pbmc_ifnb", "unseen_context"),
        ("cao2018_a549_dex_timecourse", "unseen_time"),
    ],
)
def test_real_files(name, split):
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip("the real data are not on this machine")
    diagnosis = doctor(path)
    assert diagnosis.setup is not None and diagnosis.setup.control == "control"
    assert diagnosis.split == split and diagnosis.problems == ()


def _spoilt(kind: str) -> AnnData:
    adata = simulate_screen(**SMALL, seed=2).adata
    adata.obs["n_counts"] = np.asarray(adata.X.sum(1)).ravel() * 1.2
    if kind == "layer":
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X.multiply(0.7).tocsr()
    elif kind == "log1p":
        adata.X = adata.X.multiply(1e4 / np.asarray(adata.X.sum(1))).tocsr().log1p().astype(np.float32)
    elif kind == "nan":
        adata.X.data[100] = np.nan
    elif kind == "negative":
        adata.X.data[100] = -1
    elif kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "zeros":
        adata.X = np.zeros(adata.shape, dtype=np.float32)
    elif kind == "nothing recognised":
        adata.obs = adata.obs[["n_counts"]]
    return adata


KINDS = {
    "counts": "X: counts", "layer": "layers['counts']: counts", "log1p": "X: log1p", "nan": "NaN", "negative": "scaled or centred",
    "dense": "X: counts", "zeros": "only zeros", "nothing recognised": "X: counts",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_file_is_looked_through_a_block_at_a_time(kind, tmp_path, monkeypatch):
    path = tmp_path / "screen.h5ad"
    _spoilt(kind).write_h5ad(path)
    in_memory = doctor(path).to_dict()
    assert KINDS[kind] in in_memory["matrix"]
    monkeypatch.setattr("counterflow.diagnosis.doctor.SHARE", 0.0)
    monkeypatch.setattr("counterflow.data.stored._known", {})
    monkeypatch.setattr("counterflow.data.files.read_h5ad", None)
    monkeypatch.setattr("counterflow.diagnosis.contents.raw_matrix", None)
    monkeypatch.setattr("counterflow.data.schema.as_csr", None)
    on_disk = doctor(path).to_dict()
    assert {name: value for name, value in on_disk.items() if name != "needs"} == {k: v for k, v in in_memory.items() if k != "needs"}
