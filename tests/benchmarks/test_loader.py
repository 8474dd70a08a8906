"""Memory of a fit whose cells stay on disk, measured as the benchmark does it: three times as many cells, and next to no more memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADER = ROOT / "benchmarks" / "loader.py"


def call(*words):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(LOADER), *map(str, words)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(*words):
    return json.loads(call("measure", *words).splitlines()[-1])


@pytest.mark.slow
def test_a_file_is_written_converted_and_read(tmp_path):
    path = tmp_path / "cells.h5ad"
    call("write", path, "--cells", 3000, "--grouped")
    assert measured("convert", path)["gb"] == pytest.approx(0.0015, abs=0.001)
    assert 0 < measured("feed", path, "cache")["csr"] < 1000


@pytest.mark.slow
def test_more_cells_take_no_more_memory(tmp_path):
    peaks = []
    for n_cells in (50_000, 150_000):
        path = tmp_path / f"{n_cells}.h5ad"
        call("write", path, "--cells", n_cells)
        assert measured("convert", path)["peak_mb"] < 300
        peaks.append(measured("fit", path, "cache", 5)["peak_mb"])
    assert peaks[1] <= peaks[0] + 64
