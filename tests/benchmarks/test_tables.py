"""Tables in the README and in docs are those of the results."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("script", ["accuracy_doc", "readme_tables", "recipes_doc"])
def test_the_page_is_what_the_script_writes(script, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--check"])
    assert import_module(script).main() == 0, f"run python benchmarks/{script}.py"
