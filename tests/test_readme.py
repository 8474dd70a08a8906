"""README says what is true: its file tree, its two commands, its ten lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def readme():
    return README.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def tree(readme):
    """Paths of the file-structure block: indented names, each with a comment after two spaces or more."""
    block = next(
        block for block in re.findall(r"^```[a-z]*\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE) if "src/counterflow/" in block
    )
    paths, folders = [], []
    for line in block.splitlines():
        names = re.match(r"(?P<indent>[ │├└─]*)(?P<names>\S.*?)(\s{2,}.*|\s+#.*)?$", line)
        if not names:
            continue
        depth = len(names["indent"])
        folders = [(at, folder) for at, folder in folders if at < depth]
        for name in names["names"].replace(",", " ").split():
            path = "/".join([*(folder for _, folder in folders), name.rstrip("/")])
            paths.append(path)
        if names["names"].endswith("/"):
            folders.append((depth, names["names"].rstrip("/")))
    return paths


def test_every_file_of_the_tree_exists(readme):
    missing = [path for path in tree(readme) if not (ROOT / path).exists()]
    assert tree(readme) and missing == []


def test_everything_at_the_top_of_the_package_is_in_the_tree(readme):
    package = ROOT / "src" / "counterflow"
    there = {path.name for path in package.iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")}
    named = {Path(path).name for path in tree(readme)}
    assert sorted(there - named) == []


def test_the_two_commands_are_those_that_ci_runs(readme):
    commands = [line for block in blocks(readme, "bash") for line in block.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "< <(grep -E '^python3 -m venv ' README.md)" in script and 'bash -ec "$command"' in script  # as printed, not a copy


def test_the_python_example_runs(readme, tiny_screen, tmp_path):
    """As written, but for a short training and the tiny screen wherever it names a file."""
    example = next(block for block in blocks(readme, "python") if "CounterFlow" in block)
    assert 8 <= len([line for line in example.splitlines() if line.strip() and not line.strip().startswith("#")]) <= 14
    short = """
import counterflow
train = counterflow.CounterFlow.train
def briefly(self, *args, **kwargs):
    return train(self, **{**kwargs, "max_steps": 5, "progress": False})
counterflow.CounterFlow.train = briefly
import matplotlib
matplotlib.use("Agg")
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", short + example], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
