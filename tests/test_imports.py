"""`import counterflow` and `counterflow --help` are cheap. How cheap, in seconds, is for benchmarks/throughput.py to say."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import counterflow

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "scanpy", "scvi", "lightning", "ot", "anndata", "sklearn", "matplotlib")
LOADED = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def loaded_after(code):
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED}"], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_imports_nothing_heavy():
    assert loaded_after("import counterflow") == []


def test_a_room_with_lazy_names_imports_nothing_heavy():
    assert loaded_after("import counterflow; dir(counterflow.evaluate)") == []


def test_help_imports_nothing_heavy():
    code = """
from counterflow.cli import main
try:
    code = main(["--help"])
except SystemExit as stop:
    code = stop.code
assert not code, code
"""
    assert loaded_after(code) == []


def test_generating_from_a_saved_model_does_not_import_lightning(declared, tmp_path):
    model = counterflow.CounterFlow(declared, backbone_kwargs={"size": "XS"}, space_kwargs={"n_components": 5})
    model.train(max_steps=2, progress=False)
    model.save(tmp_path / "model")
    code = f"""
from counterflow import CounterFlow
CounterFlow.load({str(tmp_path / "model")!r}).generate({model.vocabulary.entities[0]!r}, 5)
"""
    assert not {"lightning", "scvi", "scanpy", "ot"} & set(loaded_after(code))


@pytest.mark.parametrize("name", counterflow.__all__)
def test_every_public_name_resolves(name):
    found = getattr(counterflow, name)
    if name in counterflow._ROOMS:
        assert found is importlib.import_module(f"counterflow.{name}")


def test_dir_lists_the_public_names_and_others_are_refused():
    assert dir(counterflow) == sorted(counterflow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'CounterFlo'"):
        counterflow.CounterFlo  # noqa: B018
