"""Imports point one way: every file is read with `ast`, whether or not the import runs, and an upward arrow fails."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src"
PACKAGE = ROOT / "counterflow"

BOTTOM = {"types", "errors", "processor", "shown"}
ROOMS = {"nn", "backbones", "flow", "diffusion", "spaces", "conditions", "data", "effects"}
MODEL_PARTS = (
    "footprint",
    "stopping",
    "memory",
    "compiling",
    "migrations",
    "checkpoint",
    "reference",
    "module",
    "grouping",
    "sampling",
    "reflow",
    "assembly",
    "resuming",
    "loggers",
    "devices",
    "callbacks",
    "training",
    "fitting",
    "prediction",
    "recentring",
    "calibration",
    "requests",
    "effect_table",
    "answers",
    "recipe",
    "bounded",
    "soundness",
    "saving",
    "panels",
    "portrait",
)
"""In the order in which they may import each other: later ones the earlier ones."""
TOP = {"explore", "demo", "budget", "contender", "compare", "run", "replay", "fit_report", "cli"}
ALLOWED = {  # room or top-level file -> the rooms and files it may import, besides itself
    "errors": set(),
    "types": set(),
    "processor": set(),
    "shown": set(),
    **dict.fromkeys(ROOMS, BOTTOM),
    "backbones": BOTTOM | {"nn"},
    "conditions": BOTTOM | {"nn"},
    "page": BOTTOM,
    "evaluate": BOTTOM | {"data", "effects", "page"},
    "diagnosis": BOTTOM | {"data", "footprint"},
    "pl": BOTTOM | {"data", "evaluate"},
    **{part: BOTTOM | ROOMS | set(MODEL_PARTS[:i]) for i, part in enumerate(MODEL_PARTS)},
    "model": BOTTOM | ROOMS | {*MODEL_PARTS, "evaluate"},
    **dict.fromkeys(TOP, BOTTOM | ROOMS | {*MODEL_PARTS} | {"evaluate", "diagnosis", "pl", "page", "model"} | TOP),
    "__init__": BOTTOM | ROOMS | {"evaluate", "diagnosis", "pl", "model"},
}
UPWARD_BUT_MEANT = {
    ("evaluate", "counterflow.spaces.counts"),  # a baseline's cells become counts in the way the model's do
}


def imports(file, package=PACKAGE):
    """Every module of ours that a file imports, at the top or inside a function; what only type checkers see is left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {id(node) for branch in ast.walk(tree) if _is_type_checking(branch) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            if node.module and node.module.split(".")[0] == package.name:
                for alias in node.names:
                    submodule = package.joinpath(*node.module.split(".")[1:], alias.name)
                    is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                    yield f"{node.module}.{alias.name}" if is_module else node.module


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module):
    """`counterflow.flow.path` -> flow, `counterflow.model` -> model, `counterflow` -> __init__."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def room_of(file, package=PACKAGE):
    return file.relative_to(package).with_suffix("").parts[0]


def upward(file, package=PACKAGE):
    here = room_of(file, package)
    return [
        module
        for module in imports(file, package)
        if room(module) not in (here, "__init__") and room(module) not in ALLOWED[here] and (here, module) not in UPWARD_BUT_MEANT
    ]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_points_upward(file):
    assert room_of(file) in ALLOWED, f"say in {Path(__file__).name} what {file.name} may import"
    assert upward(file) == []


def test_an_upward_import_is_found(tmp_path):
    package = tmp_path / "counterflow"
    (package / "nn").mkdir(parents=True)
    (package / "model.py").touch()
    file = package / "nn" / "blocks.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "import counterflow.types\n"
        "if TYPE_CHECKING:\n    from counterflow.flow.path import interpolate\n"
        "def late():\n    from counterflow import model\n    import counterflow.data.schema\n"
    )
    assert upward(file, package) == ["counterflow.model", "counterflow.data.schema"]


def test_the_heavy_libraries_are_imported_late_and_in_few_places():
    where = {name: set() for name in ("scvi", "ot", "lightning", "scanpy", "sklearn", "matplotlib")}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        at_top = set(map(id, tree.body))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} & set(where):
                where[name].add(str(file.relative_to(PACKAGE)))
                early = id(node) in at_top and file.name not in ("training.py", "callbacks.py")
                assert not early, f"{file.name} imports {name} before it is needed"
    most = {"scvi": 2, "ot": 2, "lightning": 4}
    assert {name: len(where[name]) <= n for name, n in most.items()} == dict.fromkeys(most, True), where
