"""Cells that do not fit into memory: `counterflow convert`, and what fit, evaluate and generate make of it."""

import json
import shlex
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from counterflow.cli import feed, main
from counterflow.data import stored
from counterflow.data.simulate import SMALL, simulate_screen

SETUP = ["--setup.perturbation_key", "perturbation", "--setup.control", "control", "--setup.match_keys", "[cell_type]"]
FIT = [*SETUP, "--train.max_steps", "2", "--train.batch_size", "32", "--train.set_size", "8", "--model.space_kwargs.n_components", "4"]


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "screen.h5ad"
    simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3}, seed=1).adata.write_h5ad(path)
    return path


@pytest.fixture
def nothing_fits(monkeypatch):
    monkeypatch.setattr(feed, "SHARE", 0.0)
    monkeypatch.setattr(stored, "_known", {})


def weights(run):
    return load_file(run / "model" / "weights.safetensors")


def test_a_fit_from_disk_is_a_fit_from_memory(screen, tmp_path, monkeypatch, capsys):
    assert main(["fit", str(screen), *FIT, "--out", str(tmp_path / "memory")]) == 0
    assert "cells stay on disk" not in capsys.readouterr().out
    monkeypatch.setattr(feed, "SHARE", 0.0)
    for place in ("file", "cache"):
        monkeypatch.setattr(stored, "_known", {})
        if place == "cache":
            assert main(["convert", str(screen), *SETUP, "--json"]) == 0
            made = json.loads(capsys.readouterr().out)
            assert made["made"] and made["cells"] == 295 and Path(made["cache"]).name == "screen.h5ad.cells"
        assert main(["fit", str(screen), *FIT, "--out", str(tmp_path / place)]) == 0
        said = capsys.readouterr()
        assert f"cells stay on disk, and come from {'its cache' if place == 'cache' else 'the file itself'}" in said.out
        assert ("counterflow convert" in said.err) == (place == "file")  # the one command that mends it
        for name, value in weights(tmp_path / "memory").items():
            assert np.array_equal(value, weights(tmp_path / place)[name]), (place, name)
        data = [json.loads((tmp_path / run / "run.json").read_text())["data"]["sha256"] for run in ("memory", place)]
        assert data[0] == data[1]
    assert main(["convert", str(screen), *SETUP]) == 0
    assert "was there already, and is whole" in capsys.readouterr().out


def test_the_command_of_the_warning_can_be_given_as_it_is(screen, tmp_path, capsys, nothing_fits):
    path = tmp_path / "my screen.h5ad"
    path.write_bytes(screen.read_bytes())
    assert main(["fit", str(path), *FIT, "--out", str(tmp_path / "run")]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "counterflow convert" in line]
    command = said.partition("once: counterflow ")[2]
    assert main(shlex.split(command)) == 0
    assert (tmp_path / "my screen.h5ad.cells" / "meta.json").is_file()


def test_the_same_cells_are_generated_from_controls_on_disk(screen, tmp_path, capsys, monkeypatch):
    assert main(["fit", str(screen), *FIT, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    name = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["vocabulary"]["entities"][0]
    for place in ("memory", "disk"):
        if place == "disk":
            monkeypatch.setattr(feed, "SHARE", 0.0)
            monkeypatch.setattr(stored, "_known", {})
        out = str(tmp_path / f"{place}.h5ad")
        assert main(["generate", str(tmp_path / "run"), "--condition", name, "--controls", str(screen), "--out", out, "--quiet"]) == 0
    a, b = (anndata.read_h5ad(tmp_path / f"{place}.h5ad") for place in ("memory", "disk"))
    assert a.n_obs > 20 and a.obs.equals(b.obs) and (a.layers["counts"] != b.layers["counts"]).nnz == 0
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("dropped", [False, True])
def test_a_comparison_from_disk_is_one_from_memory(screen, tmp_path, capsys, monkeypatch, dropped):
    adata = anndata.read_h5ad(screen)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object)
    if dropped:
        adata.obs.loc[adata.obs_names[::9], "perturbation"] = None
    adata.write_h5ad(tmp_path / "screen.h5ad")
    words = [str(tmp_path / "screen.h5ad"), *SETUP, "--models", "mlp/pca", "--budget.steps", "2", "--model.space_kwargs.n_components", "4"]
    words += ["--setup.drop_missing", "true", "--split", "unseen_combination", "--learning_curve", "[0.5]"]
    for place in ("memory", "disk"):
        if place == "disk":
            monkeypatch.setattr(feed, "SHARE", 0.0)
            monkeypatch.setattr(stored, "_known", {})
        assert main(["compare", *words, "--out", str(tmp_path / place)]) == 0
        assert ("cells stay on disk" in capsys.readouterr().out) == (place == "disk")
    a, b = (pd.read_csv(tmp_path / place / "table.csv") for place in ("memory", "disk"))
    assert len(a) > 100 and "mlp/pca" in set(a["method"])
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-6)  # means of effects are summed in the order of storage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--setup.control", "control"], "--setup.perturbation_key must be given"),
        ([*SETUP, "--setup.split_key", "x"], "--setup.split_key has no meaning here"),
        ([*SETUP[:1], "perturbatoin", *SETUP[2:]], "did you mean 'perturbation'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(screen, words, said, capsys):
    assert main(["convert", str(screen), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_cache_is_verified_to_its_last_byte(screen, tmp_path, capsys):
    path = tmp_path / "screen.h5ad"
    path.write_bytes(screen.read_bytes())
    assert main(["convert", str(path), "--verify"]) == 2
    assert "has no cache" in capsys.readouterr().err
    assert main(["convert", str(path), *SETUP, "--quiet"]) == 0
    assert main(["convert", str(path), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"]
    pairs = tmp_path / "screen.h5ad.cells" / "pairs.bin"
    content = bytearray(pairs.read_bytes())
    content[-1] ^= 1
    pairs.write_bytes(content)
    assert main(["convert", str(path), "--verify"]) == 2
    assert "pairs.bin is not what was written" in capsys.readouterr().err
    content[-1] ^= 1
    pairs.write_bytes(content)
    with path.open("r+b") as handle:
        handle.truncate(handle.seek(0, 2) - 1)
    assert main(["convert", str(path), "--verify"]) == 2
    assert "as it was before it changed" in capsys.readouterr().err
