"""A pickle can run any code. One lies at every place that a reader looks at: none of them is ever unpickled."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from counterflow import CounterFlow, CounterflowError, read_h5ad, simulate_screen
from counterflow.cli import main
from counterflow.data.simulate import SMALL
from counterflow.data.split_file import Split

FIT = (
    *("--setup.perturbation_key", "perturbation", "--setup.control", "control", "--split", "unseen_combination", "--quiet"),
    *("--train.max_steps", "3", "--train.batch_size", "32", "--train.set_size", "16", "--model.anchor", "none"),
    *("--model.backbone_kwargs.width", "8", "--model.backbone_kwargs.depth", "1", "--model.space_kwargs.n_components", "4"),
)  # fmt: skip


class Mark:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with a model saved beside its data, and an unfinished state of training."""
    folder = tmp_path_factory.mktemp("pickles")
    adata = simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3}).adata
    adata.write_h5ad(folder / "screen.h5ad")
    run = folder / "run"
    assert main(["fit", str(folder / "screen.h5ad"), *FIT, "--out", str(run)]) == 0
    adata.obs["counterflow_split"] = "train"
    CounterFlow.load(run / "model", adata).save(run / "shared", save_anndata=True)
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def evil(mark: Path, how: str) -> bytes:
    """The same pickle in the wrappings that readers of arrays and tensors know."""
    plain = pickle.dumps(Mark(mark))
    if how == "plain":
        return plain
    buffer = io.BytesIO()
    if how == "torch":
        torch.save({"state_dict": Mark(mark), "global_step": 1}, buffer)
    elif how == "old torch":
        torch.save({"state_dict": Mark(mark), "global_step": 1}, buffer, _use_new_zipfile_serialization=False)
    elif how == "npy":
        np.save(buffer, np.array([Mark(mark)], dtype=object), allow_pickle=True)
    else:
        with zipfile.ZipFile(buffer, "w") as parts:
            parts.writestr("archive/data.pkl", plain)
            parts.writestr("archive/version", "3")
            parts.writestr("data.pkl", plain)
    return buffer.getvalue()


HOW = ("plain", "torch", "old torch", "npy", "zip")


def read_everything(folder: Path, *, also_fit: bool) -> int:
    """Every reader of ours, with `also_fit` the verbs that fit and predict as well; how many refused."""
    run, data = str(folder / "run"), str(folder / "screen.h5ad")
    readers = [
        lambda: CounterFlow.load(run),
        lambda: CounterFlow.load(folder / "run" / "shared"),
        lambda: read_h5ad(folder / "run" / "shared" / "adata.h5ad"),
        lambda: read_h5ad(data),
        lambda: Split.load(folder / "run" / "split.json"),
    ]
    verbs = [
        ["info", run],
        ["info", f"{run}/shared"],
        ["doctor", data],
        ["replay", run, "--sample"],
        ["fit", "--config", f"{run}/config.yaml", "--out", run, "--resume"],
    ]
    more = [
        ["generate", run, "--condition", "G008", "--n_cells", "2", "--out", str(folder / "cells.h5ad")],
        ["evaluate", run, "--out", str(folder / "scores")],
        ["fit", "--config", f"{run}/config.yaml", "--out", str(folder / "again"), "--split", f"{run}/split.json", "--train.max_steps", "1"],
    ]
    refused = 0
    for reader in readers:
        try:
            reader()
        except CounterflowError:
            refused += 1
    for words in [*verbs, *(more if also_fit else [])]:
        code = main([*words, "--quiet"])
        assert code in (0, 2), words
        refused += code == 2
    return refused


def test_the_pickles_would_run(tmp_path):
    for how in HOW:
        mark = tmp_path / how.replace(" ", "_")
        content = io.BytesIO(evil(mark, how))
        if how == "zip":
            pickle.loads(zipfile.ZipFile(content).read("data.pkl"))
        elif how == "npy":
            np.load(content, allow_pickle=True)
        else:
            (pickle.load if how == "plain" else lambda file: torch.load(file, weights_only=False))(content)
        assert mark.is_dir(), how


def place_in(finished, tmp_path, file: str, content: bytes) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished), str(folder)))
    facts = folder / "run" / "run.json"
    facts.write_text(facts.read_text().replace(str(finished), str(folder)))
    (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("also_fit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_none_is_unpickled_wherever_it_lies(finished, tmp_path, capsys, also_fit):
    files = files_of(finished)
    known = {"screen.h5ad", "run/config.yaml", "run/run.json", "run/split.json", "run/sample.json", "run/checkpoints/last.ckpt"}
    assert known <= set(files) and "run/model/model.json" in files and len(files) >= 13
    for number, file in enumerate(files):
        mark = tmp_path / f"mark{number}"
        how = HOW[number % len(HOW)] if "ckpt" not in file else "torch"
        folder = place_in(finished, tmp_path, file, evil(mark, how))
        if "ckpt" in file:
            shutil.rmtree(folder / "run" / "model")  # a run that goes on from it
        refused = read_everything(folder, also_fit=also_fit)
        assert not mark.exists(), file
        assert refused >= 1 or file in ("run/metrics.csv", "run/report.html"), file  # which nothing reads
        shutil.rmtree(folder)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file", ["model/model.json", "model/weights.safetensors", "model/arrays.safetensors", "checkpoints/last.ckpt"])
def test_in_no_wrapping(finished, tmp_path, file, how):
    from counterflow.resuming import read_state

    mark = tmp_path / "mark"
    folder = place_in(finished, tmp_path, f"run/{file}", evil(mark, how))
    for reader in (lambda: CounterFlow.load(folder / "run"), lambda: read_state(folder / "run" / "checkpoints" / "last.ckpt", None, False)):
        try:
            reader()
        except CounterflowError:
            continue
    assert not mark.exists()
