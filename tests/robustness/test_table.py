"""Every row of the table of bad inputs, through the Python face and the command line: class, words, exit code, and nothing written.

The cases are those of `benchmarks/bad_input_table.py`, which also makes the table to read.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bad_inputs = importlib.import_module("bad_inputs")
sys.path.remove(str(BENCHMARKS))
CASES = bad_inputs.CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}: {case.name}")
def test_both_faces(case, tmp_path):
    played = bad_inputs.play(case, tmp_path)
    assert played.failures() == [], f"{played.error} {played.said}\n{played.code} {played.printed}"


def test_every_row_has_a_case():
    assert {case.row for case in CASES} == set(range(1, len(bad_inputs.ROWS) + 1)) and len(bad_inputs.ROWS) == 33


def test_a_refusal_that_writes_or_says_something_else_is_found():
    case = CASES[0]
    good = bad_inputs.Played(case, "DataError", " ".join(case.says), 2, "error: " + " ".join(case.says), (), "")
    assert good.failures() == []
    for change in ({"error": "KeyError"}, {"code": 1}, {"said": "no"}, {"printed": "Traceback"}, {"written": ("run.json",)}):
        assert bad_inputs.Played(**{**vars(good), **change}).failures(), change


def test_the_checkpoint_that_an_exploding_fit_leaves_is_finite(tmp_path):
    case = next(case for case in CASES if case.row == 33)
    played = bad_inputs.play(case, tmp_path)
    assert "the last good checkpoint is kept" in played.printed
    content = torch.load(tmp_path / "shell" / "out" / "result" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in content["state_dict"].values() if value.is_floating_point())


def test_a_fit_says_what_memory_it_needs_before_it_begins(tmp_path, capsys):
    case = next(case for case in CASES if case.name == "dense")
    made = bad_inputs.scene(case, tmp_path)
    assert bad_inputs.command_line([*case.command(made), "--train.lr", "1e30", "--train.max_steps", "20"]) == 2  # it never gets to the end
    assert "memory: about 0." in capsys.readouterr().out


def test_several_problems_of_a_file_are_reported_together(tmp_path):
    """A file with wrong columns, names and values is wrong once: before training, with a number for each problem."""
    spoiling = importlib.import_module("bad_input_spoiling")
    adata = spoiling.screen().copy()
    adata.var_names = ["G000", *adata.var_names[:-1]]
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object).where(adata.obs_names != "cell000003", None)
    adata.X.data[[3, 9]] = float("nan"), -2.0
    cf = importlib.import_module("counterflow")
    with pytest.raises(cf.DataError) as caught:
        cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="DMSO", covariate_keys=["cell_type", "lane"])
    text = str(caught.value)
    for words in ("6 problems", "duplicate gene", "'cell_type'", "'lane' is not a column", "'DMSO'", "NaN", "negative"):
        assert words in text
