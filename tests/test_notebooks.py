"""Each notebook runs from start to end, and the one that is committed with outputs is the one that the script says."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("[0-9]*.py"))
by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def notebooks():
    """The module `notebooks/execute.py`."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", NOTEBOOKS / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook, kind):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if output.output_type == kind]


@pytest.fixture
def in_tree(monkeypatch):
    """The kernel imports the package of this checkout, whatever is installed."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # numba also sets the threads of torch, through the OpenMP they share
    monkeypatch.delenv("MPLBACKEND", raising=False)


def test_every_notebook_has_both_files():
    assert [script.stem for script in SCRIPTS] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@by_name
def test_the_committed_notebook_is_the_script_with_its_outputs(script, notebooks):
    committed, expected = nbformat.read(script.with_suffix(".ipynb"), as_version=4), notebooks.read(script)
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [(cell.cell_type, cell.source) for cell in expected.cells]
    assert all(cell.execution_count for cell in committed.cells if cell.cell_type == "code")
    assert not outputs(committed, "error")
    nbformat.validate(committed)


def test_the_quickstart_runs(notebooks, in_tree, monkeypatch):
    """With a training too short to be any good."""
    monkeypatch.setenv("QUICKSTART_STEPS", "20")
    done = notebooks.execute(notebooks.read(NOTEBOOKS / "01_quickstart.py"), timeout=300)
    pictures = [output for output in outputs(done, "display_data") if "image/png" in output.data]
    assert len(pictures) == 3
    assert "held-out pairs" in "".join(output.text for output in outputs(done, "stream"))


SHORT = {
    "01_quickstart": {"QUICKSTART_STEPS": "5"},
    "02_rectified_flow": {"FLOW_STEPS": "5"},
    "03_compare_backbones": {"COMPARE_STEPS": "2"},
    "04_latent_flow": {"SCVI_EPOCHS": "1", "LATENT_STEPS": "2"},
    "05_unseen_perturbations": {"UNSEEN_STEPS": "2"},
    "06_dose_and_time": {"DYNAMICS_STEPS": "5"},
    "07_own_backbone": {"OWN_STEPS": "2"},
    "08_image_dit": {"IMAGE_STEPS": "5"},
    "09_differential_expression": {"DE_STEPS": "2"},
}
"""What makes a notebook short: trainings that are no good."""

HONEST = {
    "01_quickstart": r"the model is (ahead of|behind) the rule",
    "02_rectified_flow": r"default model  [\d.]+; (not )?better than the rule",
    "03_compare_backbones": r"mlp/pca: [A-Z ]+[:(]",
    "04_latent_flow": r"is the better space; (better|worse) than the best rule",
    "05_unseen_perturbations": r"error [\d.]+% (lower|higher) than that of the best rule",
    "06_dose_and_time": r"best: (dynamics|mlp|straight lines)",
    "07_own_backbone": r"mylab:Gated/pca: (better|worse) than the best rule",
    "09_differential_expression": r"counterflow is (ahead of|behind) the additive rule",
}
"""What a notebook says of the model and the best simple rule, whatever came out."""


def text(notebook):
    return "".join(output.text for output in outputs(notebook, "stream"))


@by_name
def test_the_committed_notebook_says_whether_the_model_wins(script):
    said = text(nbformat.read(script.with_suffix(".ipynb"), as_version=4))
    assert re.search(HONEST.get(script.stem, ""), said)


@by_name
def test_the_committed_notebook_names_no_place_on_a_machine(script):
    content = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work|mnt)/", content)


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script.stem in SHORT], ids=lambda script: script.stem)
def test_a_notebook_runs_with_little_training(script, notebooks, in_tree, monkeypatch):
    """As many pictures as the committed one has, and the same verdict in other numbers."""
    for name, value in SHORT[script.stem].items():
        monkeypatch.setenv(name, value)
    done, committed = notebooks.execute(notebooks.read(script), timeout=300), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    pictures = [sum("image/png" in output.data for output in outputs(one, "display_data")) for one in (done, committed)]
    assert pictures[0] == pictures[1] > 0
    assert re.search(HONEST.get(script.stem, ""), text(done))


@pytest.mark.slow
@by_name
def test_a_notebook_runs_as_it_is(script, notebooks, in_tree):
    done = notebooks.execute(notebooks.read(script), timeout=600)
    assert not outputs(done, "error")
