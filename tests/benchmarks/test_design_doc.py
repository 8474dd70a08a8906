"""The table of what the design names is about files that are there, and leaves out no network, solver or space."""

import importlib.util
from pathlib import Path

from counterflow.backbones import BACKBONES

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location("design_doc", ROOT / "benchmarks" / "design_doc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_script_writes_and_its_paths_exist():
    doc = load()
    assert doc.missing() == []
    assert (ROOT / "docs" / "design.md").read_text(encoding="utf-8") == doc.page()


def test_no_network_is_left_out():
    networks = " ".join(part.name for part in load().PARTS["Networks"])
    assert [name for name in BACKBONES if f"`{name}`" not in networks] == []


def test_what_was_not_built_has_its_line():
    doc = load()
    told = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").lower()
    words = {
        "cells as tokens": "cells as tokens", "attention maps": "attention maps", "several panels": "different panels",
        "flexattention": "flexattention", "unbalanced": "unbalanced", "noise added to the path": "noise on the path",
        "autoguidance": "autoguidance", "shortcut": "shortcut models", "post-hoc": "post-hoc", "over sets of genes": "set autoencoder",
        "unconditional": "unconditional",
    }  # fmt: skip
    for part in (part for group in doc.PARTS.values() for part in group if not part.where):
        assert any(key in part.name.lower() and phrase in told for key, phrase in words.items()), part.name
