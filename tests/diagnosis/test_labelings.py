"""Files as other tools leave them: the labelling is named, and the declaration that is proposed can be fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.diagnosis.columns import amounts
from counterflow.diagnosis.controls import delimiter_of, perturbation_column
from counterflow.diagnosis.labelings import LABELINGS

N = 240
GENES = ["KLF1", "MAP2K6", "TP53", *(f"G{i}" for i in range(9))]


def cycle(*levels: object) -> list[object]:
    """The levels in turn, one for each cell."""
    return [levels[i % len(levels)] for i in range(N)]


def screen(**columns: list[object]) -> AnnData:
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (N, len(GENES))).astype(np.float32))
    return AnnData(counts, obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(N)]), var=pd.DataFrame(index=GENES))


FILES = {
    "GEARS": (
        screen(
            condition=cycle("ctrl", "KLF1+ctrl", "ctrl+MAP2K6", "KLF1+MAP2K6"), cell_type=cycle("K562"),
            dose_val=cycle("1", "1+1", "1+1", "1+1"), control=cycle(1, 0, 0, 0),
        ),
        {"perturbation_key": "condition", "control": "ctrl"},
    ),
    "scPerturb": (
        screen(
            perturbation=cycle("control", "KLF1", "MAP2K6", "KLF1_MAP2K6"), nperts=cycle(0, 1, 1, 2), ncounts=cycle(900.0),
            percent_mito=cycle(3.0), celltype=cycle("lymphoblasts"), perturbation_type=cycle("CRISPR"),
        ),
        {"perturbation_key": "perturbation", "control": "control", "delimiter": "_", "library_size_key": "ncounts"},
    ),
    "CPA": (
        screen(
            condition=cycle("Vehicle", "BMS", "Dex", "BMS+Dex"), cell_type=cycle("A549"), dose_val=cycle("1", "0.5", "0.1", "1.0+0.5"),
            control=cycle(1, 0, 0, 0), split=cycle("train", "train", "test"),
        ),
        {"perturbation_key": "condition", "control": "Vehicle", "dose_key": "dose_val", "split_key": "split"},
    ),
    "State / Virtual Cell Challenge": (
        screen(target_gene=cycle("non-targeting", "KLF1", "MAP2K6", "TP53"), guide_id=cycle("a", "b", "c", "d"), batch=cycle("b1", "b2")),
        {"perturbation_key": "target_gene", "control": "non-targeting"},
    ),
    "State (Tahoe)": (
        screen(
            drugname_drugconc=cycle("[('DMSO_TF', 0.0, 'uM')]", "[('Afatinib', 0.5, 'uM')]", "[('Afatinib', 5.0, 'uM')]"),
            cell_line=cycle("A", "A", "A", "B", "B", "B"),
        ),
        {"perturbation_key": "drugname_drugconc", "control": "[('DMSO_TF', 0.0, 'uM')]", "match_keys": ["cell_line"],
         "covariate_keys": ["cell_line"]},
    ),
    "PerturBench": (
        screen(
            condition=cycle("control", "KLF1", "MAP2K6", "KLF1+MAP2K6"), cell_type=cycle(*["x"] * 4, *["y"] * 4),
            perturbation_type=cycle("CRISPRa"), dataset=cycle("norman19"),
        ),
        {"perturbation_key": "condition", "control": "control", "covariate_keys": ["cell_type"], "match_keys": ["cell_type"]},
    ),
    "pertpy": (
        screen(
            perturbation=cycle("NT", "Perturbed", "Perturbed"), gene_target=cycle("NT", "KLF1", "TP53"),
            guide_ID=cycle("NTg1", "KLF1g1", "TP53g2"), replicate=cycle("rep1", "rep1", "rep1", "rep2", "rep2", "rep2"),
        ),
        {"perturbation_key": "gene_target", "control": "NT", "covariate_keys": ["replicate"], "match_keys": ["replicate"]},
    ),
    "plain": (screen(what=cycle("untreated", "KLF1", "TP53")), {"perturbation_key": "what", "control": "untreated"}),
}  # fmt: skip


def test_every_labelling_has_a_file():
    assert set(FILES) == {*LABELINGS, "plain"}


@pytest.mark.parametrize("tool", FILES)
def test_the_labelling_is_named_and_the_declaration_is_the_right_one(tool):
    adata, expected = FILES[tool]
    diagnosis = cf.doctor(adata)
    assert diagnosis.labeling == tool and diagnosis.problems == ()
    default = {"delimiter": "+"}
    assert {name: value for name, value in diagnosis.to_dict()["setup"].items() if default.get(name) != value} == expected
    assert tool == "plain" or f"labelled like {tool}" in str(diagnosis)
    copy = adata.copy()
    exec(diagnosis.python, {"cf": cf, "adata": copy})
    cf.CounterFlow(copy)


def test_doses_that_only_count_the_parts_are_not_doses():
    """GEARS writes "1+1" for one gene beside the control."""
    assert cf.doctor(FILES["GEARS"][0]).setup.dose_key is None
    mixed = screen(condition=cycle("ctrl", "KLF1", "TP53", "KLF1+TP53"), dose_val=cycle("1", "1", "1", "1+1"))
    assert cf.doctor(mixed).setup.dose_key is None
    mixed.obs["dose_val"] = cycle("1", "1", "2", "1+2")
    assert cf.doctor(mixed).setup.dose_key == "dose_val"
    assert amounts("1.0+0.5") == (1.0, 0.5) and amounts("1e+3") == (1000.0,) and amounts("much") is amounts("-1") is None


def test_a_column_of_ones_and_zeros_says_which_label_is_the_control():
    adata = screen(condition=cycle("nothing", "KLF1", "TP53"), control=cycle(1, 0, 0))
    assert cf.doctor(adata).setup.control == "nothing"
    adata.obs["control"] = cycle(1, 1, 0)  # two labels: it marks something else
    assert cf.doctor(adata).setup is None


def test_whether_gives_way_to_what():
    obs = screen(perturbation=cycle("NT", "Perturbed"), guide=cycle("NT", "KLF1", "NT", "TP53")).obs
    assert perturbation_column(obs, ["perturbation", "guide"])[0] == "guide"
    assert perturbation_column(obs[["perturbation"]], ["perturbation"])[0] == "perturbation"  # better than nothing


@pytest.mark.parametrize(
    ("labels", "genes", "delimiter"),
    [
        (["ctrl", "KLF1_MAP2K6", "TP53_KLF1"], ["KLF1", "MAP2K6", "TP53"], "_"),  # pairs only: their parts are genes
        (["ctrl", "TP53", "TP53-AS1"], ["TP53"], "+"),  # one half is no name of anything
        (["ctrl", "HLA-A", "HLA-B"], ["HLA-A"], "+"),
    ],
)
def test_delimiters_of_labels_without_singles(labels, genes, delimiter):
    assert delimiter_of(labels, "ctrl", genes) == delimiter


def test_what_is_left_out_of_the_proposal_is_said():
    adata = screen(
        condition=cycle("ctrl", "KLF1", "TP53"), cell_type=cycle("x", "y", "y"), time=cycle("6h", "24h"), split=cycle("train", "ood"),
    )  # fmt: skip
    notes = " ".join(cf.doctor(adata).notes)
    for words in (
        "'cell_type' is not proposed as a context",
        "('y')",
        "'time' looks like a time",
        "'6h'",
        "'split' looks like a split",
        "'ood'",
    ):
        assert words in notes


def test_other_controls_can_be_renamed_by_the_line_that_is_given():
    adata = screen(condition=cycle("non-targeting_1", "KLF1", "non-targeting_2", "TP53"))
    (note,) = [note for note in cf.doctor(adata).notes if "several labels look like controls" in note]
    exec(note.split("If they are controls: ")[1], {"adata": adata})
    assert set(adata.obs["condition"]) == {"non-targeting_1", "KLF1", "TP53"}


def test_problems_are_listed_even_where_nothing_is_recognised():
    adata = screen(age=list(range(N)))
    adata.var_names = ["G0", *["G1"] * (len(GENES) - 1)]
    adata.X.data[0] = np.nan
    diagnosis = cf.doctor(adata)
    assert diagnosis.setup is None and len(diagnosis.problems) == 2 and "wrong:" in str(diagnosis)


def test_memory_and_time_are_told():
    text = str(cf.doctor(FILES["plain"][0]))
    assert "a fit needs" in text and "GB" in text and "min of one core" in text
