"""An h5ad made of parts: wherever the process is killed, the next one goes on and writes the same bytes."""

import json
import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data import h5_writer
from counterflow.data.h5_parts import H5Parts
from counterflow.errors import DataError

REQUEST = {"conditions": ["A", "B+C"], "seed": 1}
N_BLOCKS = 3


def block(number):
    draw, n = np.random.default_rng(number), 5 + number
    counts = sparse.csr_matrix(draw.poisson(0.5, (n, 7)).astype(np.float32))
    names = [f"c{number}.{i}" for i in range(n)]
    obs = pd.DataFrame({"condition": [f"k{number}"] * n, "source": names, "n": np.arange(n)}, index=names)
    var = pd.DataFrame(index=[f"G{i}" for i in range(7)])
    layers = {"counts": counts, "mean": draw.random((n, 7), dtype=np.float32)}
    return AnnData(counts.log1p(), obs=obs, var=var, layers=layers, uns={"how": {"conditions": ["A", "B+C"]}})


def make(path, request=REQUEST, stop_after=None):
    """What a process does that wants the file."""
    parts = H5Parts(path, request)
    done = parts.find()
    with parts.writing():
        for number in range(done, N_BLOCKS):
            parts.add(block(number))
            if number + 1 == stop_after:
                raise KeyboardInterrupt
        parts.join()
    return done


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "cells.h5ad"
    make(path)
    return path.read_bytes()


def test_the_file_holds_every_block(straight, tmp_path):
    (tmp_path / "cells.h5ad").write_bytes(straight)
    found, expected = anndata.read_h5ad(tmp_path / "cells.h5ad"), anndata.concat([block(i) for i in range(N_BLOCKS)])
    assert found.obs.astype(str).equals(expected.obs.astype(str)) and found.obs_names.equals(expected.obs_names)
    assert (found.X != expected.X).nnz == 0 and np.array_equal(found.layers["mean"], expected.layers["mean"])
    assert list(found.uns["how"]["conditions"]) == ["A", "B+C"]


def test_interrupted_blocks_are_kept_and_not_made_again(straight, tmp_path):
    path = tmp_path / "cells.h5ad"
    with pytest.raises(KeyboardInterrupt):
        make(path, stop_after=2)
    assert not path.exists() and [file.name for file in tmp_path.iterdir()] == ["cells.h5ad.partial"]
    assert make(path) == 2
    assert path.read_bytes() == straight and [file.name for file in tmp_path.iterdir()] == ["cells.h5ad"]


def test_another_request_does_not_go_on_with_them(straight, tmp_path):
    path = tmp_path / "cells.h5ad"
    with pytest.raises(KeyboardInterrupt):
        make(path, stop_after=2)
    with pytest.raises(DataError, match=r"another request.*different: seed.*--overwrite"):
        make(path, REQUEST | {"seed": 2})
    assert make(path) == 2 and path.read_bytes() == straight


def test_two_at_once_are_refused(tmp_path):
    first = H5Parts(tmp_path / "cells.h5ad", REQUEST)
    with first.writing():
        first.add(block(0))
        second = H5Parts(tmp_path / "cells.h5ad", REQUEST)
        assert second.find() == 1
        with pytest.raises(DataError, match="another process is writing"), second.writing():
            pass
    assert first.folder.is_dir()


@pytest.mark.parametrize("damage", ["request", "part"])
def test_damaged_parts_are_one_error(tmp_path, damage):
    path = tmp_path / "cells.h5ad"
    with pytest.raises(KeyboardInterrupt):
        make(path, stop_after=2)
    name = "request.json" if damage == "request" else "part-0000001.h5ad"
    (tmp_path / "cells.h5ad.partial" / name).write_bytes(b"{")
    with pytest.raises(DataError, match="not what counterflow writes: delete it" if damage == "request" else "part-0000001.*is damaged"):
        make(path)
    assert not path.exists()


def killed_at(path, operation):
    """A process that is gone before its n-th write; whether it came so far."""
    pid = os.fork()
    if not pid:
        left = [operation]

        def counting(function):
            def call(*arguments, **named):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return function(*arguments, **named)

            return call

        deadly = ((os, "replace"), (os, "fsync"), (os, "mkdir"), (h5_writer, "_append"), (h5_writer.H5Writer, "__enter__"))
        for place, name in deadly:
            setattr(place, name, counting(getattr(place, name)))
        Path.write_text, shutil.rmtree = counting(Path.write_text), counting(shutil.rmtree)
        try:
            make(path)
        except BaseException:  # a forked process must not come back into pytest
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.slow
def test_killed_at_every_write(straight, tmp_path):
    operation, kills = 0, 0
    while True:
        folder = tmp_path / str(operation)
        folder.mkdir()
        path = folder / "cells.h5ad"
        if not killed_at(path, operation):
            break
        kills += 1
        if path.exists():
            assert path.read_bytes() == straight  # whole, or not there
        make(path)
        assert path.read_bytes() == straight and [file.name for file in folder.iterdir()] == ["cells.h5ad"]
        shutil.rmtree(folder)
        operation += 1
    assert kills > 40


def test_the_request_is_written_as_it_is(tmp_path):
    parts = H5Parts(tmp_path / "cells.h5ad", {"conditions": ("A",)})
    with pytest.raises(KeyboardInterrupt), parts.writing():
        parts.add(block(0))
        raise KeyboardInterrupt
    assert json.loads((parts.folder / "request.json").read_text()) == {"conditions": ["A"]}
    assert H5Parts(tmp_path / "cells.h5ad", {"conditions": ("A",)}).find() == 1  # a tuple comes back as a list
