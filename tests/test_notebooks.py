"""Each notebook runs from start to end, and the one that is committed with outputs is the one that the script says."""

import importlib.util
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


def test_the_image_transformer_runs(notebooks, in_tree, monkeypatch):
    """With a training too short to be any good."""
    monkeypatch.setenv("IMAGE_STEPS", "5")
    done = notebooks.execute(notebooks.read(NOTEBOOKS / "08_image_dit.py"), timeout=300)
    pictures = [output for output in outputs(done, "display_data") if "image/png" in output.data]
    assert len(pictures) == 4
    assert "20 steps, guidance 2" in "".join(output.text for output in outputs(done, "stream"))


@pytest.mark.slow
@by_name
def test_a_notebook_runs_as_it_is(script, notebooks, in_tree):
    done = notebooks.execute(notebooks.read(script), timeout=600)
    assert not outputs(done, "error")
