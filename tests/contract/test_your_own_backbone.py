"""`--backbone` finds a network of yours, passes a good one and fails one that breaks the contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MINE = """
import torch
from torch import nn


class Good(nn.Module):
    def __init__(self, state_shape, condition_dim, width=16):
        super().__init__()
        self.inner = nn.Linear(state_shape[0] + condition_dim + 1, width)
        self.outer = nn.Linear(width, state_shape[0])

    def forward(self, x, t, condition):
        listened = self.heard(condition)
        return self.outer(torch.tanh(self.inner(torch.cat([x, listened, t[:, None]], dim=1))))

    def heard(self, condition):
        return condition.pooled


class Deaf(Good):
    def heard(self, condition):
        return 0 * condition.pooled


class Gossip(Good):
    def heard(self, condition):
        return condition.pooled + condition.pooled.mean(0)
"""


def contract(folder, name, *chosen):
    (folder / "mylab.py").write_text(MINE)
    path = os.pathsep.join([str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backbone", f"mylab:{name}", *chosen]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_a_good_one_passes(tmp_path):
    done = contract(tmp_path, "Good", "tests/contract/test_backbones.py", "tests/contract/test_every_combination.py", "-k", "not latent")
    assert done.returncode == 0, done.stdout
    assert "mylab:Good" in contract(tmp_path, "Good", "--collect-only", "tests/contract/test_backbones.py").stdout


@pytest.mark.parametrize(("name", "broken"), [("Deaf", "test_the_condition_matters"), ("Gossip", "test_cells_of_a_batch_are_independent")])
def test_a_broken_one_fails_and_the_test_says_why(tmp_path, name, broken):
    done = contract(tmp_path, name, "tests/contract/test_backbones.py")
    assert done.returncode == 1
    assert f"{broken}[mylab:{name}-adaln]" in done.stdout
