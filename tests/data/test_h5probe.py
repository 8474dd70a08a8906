"""A file that crashes the HDF5 library, or keeps it busy, or leads out of the file, becomes one DataError."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data import files, h5probe
from counterflow.data.files import read_h5ad
from counterflow.errors import DataError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "screen.h5ad"
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (60, 20)).astype(np.float32))
    AnnData(counts, obs=pd.DataFrame({"g": ["a", "b"] * 30}, index=[f"c{i}" for i in range(60)]), uns={"a": {"b": 1}}).write_h5ad(path)
    return path


def external_link(handle):
    handle["uns/more"] = h5py.ExternalLink("other.h5", "/secret")


def external_storage(handle):
    handle["uns"].create_dataset("more", shape=(4,), dtype="u1", external=[("secret", 0, 4)])


def virtual(handle):
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[...] = h5py.VirtualSource("other.h5", "secret", shape=(4,))
    handle["uns"].create_virtual_dataset("more", layout)


def itself(handle):
    handle["uns/a/again"] = handle["uns"]


def itself_by_name(handle):
    handle["uns/a/again"] = h5py.SoftLink("/uns")


def nested(handle):
    handle.create_group("uns/" + "/".join("x" * 100))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (external_link, "link to another file .'other.h5'"),
        (external_storage, "'/uns/more' lie in another file"),
        (virtual, "'/uns/more' lie in another file"),
        (itself, "holds itself"),
        (itself_by_name, "holds itself"),
        (nested, "more than 50 deep"),
    ],
)
def test_nothing_leads_out_of_a_file_or_round_in_it(saved, change, said):
    (saved.parent / "secret").write_bytes(b"root")
    with h5py.File(saved.parent / "other.h5", "w") as other:
        other["secret"] = np.arange(4, dtype="u1")
    read_h5ad(saved)
    with h5py.File(saved, "a") as handle:
        change(handle)
    with pytest.raises(DataError, match=said):
        read_h5ad(saved)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashes the HDF5 library; copy it again"),
        ("import os; os.abort()", "crashes the HDF5 library; copy it again"),
        ("\nwhile True: pass", "does not end; copy it again"),
        ("raise SystemError('lost')", "crashes the HDF5 library"),
    ],
)
def test_what_ends_the_other_process_is_a_damaged_file(saved, tmp_path, monkeypatch, code, said):
    probe = tmp_path / "h5probe.py"
    begin = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    probe.write_text(begin + "print('started', flush=True)\n" + code)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    with pytest.raises(DataError, match=said):
        read_h5ad(saved)


def test_where_no_process_can_be_started_files_are_read_as_before(saved, monkeypatch):
    def refused(*_, **__):
        raise OSError("no processes here")

    monkeypatch.setattr(subprocess, "run", refused)
    assert read_h5ad(saved).shape == (60, 20)
    monkeypatch.setattr(sys, "executable", None)
    assert read_h5ad(saved).shape == (60, 20)


def test_the_time_it_may_take_is_of_the_processor_and_grows_with_the_file():
    code = "import resource\nfrom counterflow.data import h5probe\nh5probe.limit({})\nprint(resource.getrlimit(resource.RLIMIT_CPU)[0])"
    words = [sys.executable, "-c"]
    said = [subprocess.run([*words, code.format(size)], capture_output=True, text=True, timeout=60).stdout for size in (0, 200_000_000)]
    assert said == ["3\n", "13\n"]


def test_it_imports_nothing_but_h5py(saved):
    script = f"import sys\nsys.argv = ['probe', {str(saved)!r}]\nimport runpy\nrunpy.run_path({h5probe.__file__!r}, run_name='__main__')\n"
    script += "print(sorted(m for m in ('anndata', 'scipy', 'torch', 'pandas', 'counterflow') if m in sys.modules))"
    said = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split() == ["started", "done", "[]"]


def test_every_sparse_matrix_of_a_file_is_looked_at(saved):
    adata = read_h5ad(saved)
    adata.layers["other"], adata.obsm["more"], adata.obsp["near"] = adata.X.copy(), adata.X.copy(), sparse.identity(60, format="csr")
    adata.write_h5ad(saved)
    read_h5ad(saved)
    for name in ("layers/other", "obsm/more", "obsp/near"):
        with h5py.File(saved, "a") as handle:
            before = handle[f"{name}/indices"][0]
            handle[f"{name}/indices"][0] = 1000
        with pytest.raises(DataError, match=r"is a damaged sparse matrix: it holds an index of 1000"):
            read_h5ad(saved)
        with h5py.File(saved, "a") as handle:
            handle[f"{name}/indices"][0] = before


@pytest.mark.parametrize("table", ["obs", "var"])
def test_names_are_never_made_up(saved, table):
    with h5py.File(saved, "a") as handle:
        del handle[table]
    with pytest.raises(DataError, match=f"holds no whole AnnData .no {table}"):
        read_h5ad(saved)


@pytest.mark.parametrize("column", ["obs['g']", "the names of obs", "the names of var"])
def test_a_name_of_a_million_letters_is_damage(saved, column):
    adata = read_h5ad(saved)
    long = "x" * 1_000_000
    if column == "obs['g']":
        adata.obs["g"] = adata.obs["g"].cat.rename_categories({"a": long})
    elif column == "the names of obs":
        adata.obs_names = [long, *adata.obs_names[1:]]
    else:
        adata.var_names = [long, *adata.var_names[1:]]
    adata.write_h5ad(saved)
    with pytest.raises(DataError, match=f"{column.replace('[', '.').replace(']', '.')} in .* holds a name of 1,000,000 letters"):
        read_h5ad(saved)


def test_a_size_that_nothing_on_disk_stands_for_is_damage(saved):
    with h5py.File(saved, "a") as handle:
        handle["obs"].create_dataset("h", shape=(10**9,), dtype="i1", chunks=(1000,))
    with pytest.raises(DataError, match="obs/h claims 1,000,000,000 values"):
        read_h5ad(saved)
