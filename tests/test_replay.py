"""`counterflow replay`: what it says of a run that comes out again, and of one that does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import pytest

from counterflow import CounterFlow
from counterflow.cli import main
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.replay import Sample, compare_samples, what_changed

FIT = (
    *("--setup.perturbation_key", "perturbation", "--setup.control", "control", "--split", "unseen_combination", "--quiet"),
    *("--train.max_steps", "6", "--train.batch_size", "32", "--train.set_size", "16"),
    *("--model.backbone_kwargs.width", "8", "--model.backbone_kwargs.depth", "1", "--model.space_kwargs.n_components", "4"),
)  # fmt: skip


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "screen.h5ad"
    simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3}).adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def fitted(screen, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("counterflow.cli.fit._scores", lambda *_: None)
        assert main(["fit", str(screen), *FIT, "--out", str(run)]) == 0
    return run


@pytest.fixture
def run(fitted, tmp_path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture
def replay(capsys):
    def replay(run, *more):
        capsys.readouterr()
        code = main(["replay", str(run), *more, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return replay


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def shift(run: Path, by: float) -> None:
    """Change one fitted number of a saved model."""
    model = CounterFlow.load(run)
    model.space.mean[3] += by
    model.save(run / "model", overwrite=True)


def test_a_run_comes_out_again_wherever_its_data_are_now(run, screen, tmp_path, replay):
    before = contents(run)
    moved = shutil.copy(screen, tmp_path / "moved.h5ad")
    assert replay(run, "--data", str(moved)) == (
        0,
        {"run": str(run), "outcome": "identical", "reasons": [], "distance": 0.0, "tolerance": 0.01},
    )
    assert contents(run) == before


def test_the_saved_model_draws_the_same_cells_again(run, replay):
    code, said = replay(run, "--sample")
    assert (code, said["outcome"], said["reasons"]) == (0, "identical", [])

    def elsewhere(facts):
        facts["versions"]["torch"], facts["threads"] = "1.0", 64

    edit(run / "run.json", elsewhere)
    code, said = replay(run, "--sample")
    assert code == 0 and said["outcome"] == "identical"  # what is different here made no difference
    assert "version: torch 1.0 then" in said["reasons"][0] and said["reasons"][1].startswith("threads: 64 then")


@pytest.mark.parametrize(("by", "code", "outcome"), [(1e-4, 0, "within tolerance"), (1.0, 1, "different")])
def test_a_model_that_is_not_what_the_run_gives_is_found(run, replay, capsys, by, code, outcome):
    shift(run, by)
    for more in ((), ("--sample",)):
        found, said = replay(run, *more)
        assert (found, said["outcome"], said["reasons"]) == (code, outcome, []) and (said["distance"] > 0.01) == (code == 1)
    assert replay(run, "--sample", "--tolerance", "0")[0] == 1
    assert main(["replay", str(run), "--sample"]) == code
    text = capsys.readouterr().out
    assert f"{run}: {outcome}" in text and "the saved model was changed" in text


def test_other_counts_are_named_as_the_reason(run, screen, tmp_path, replay):
    data = anndata.read_h5ad(screen)
    data.X = data.X[::-1].copy()  # the labels stay
    data.write_h5ad(tmp_path / "other.h5ad")
    code, said = replay(run, "--data", str(tmp_path / "other.h5ad"))
    assert (code, said["outcome"]) == (1, "different")
    assert len(said["reasons"]) == 1 and said["reasons"][0].startswith(f"data: {screen} then, {tmp_path / 'other.h5ad'} now")


def test_what_is_wrong_with_the_request_is_said_and_nothing_is_written(run, tmp_path, capsys):
    def refused(*words: str) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        assert main(["replay", *words]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error and contents(tmp_path) == before
        return error

    assert "holds no whole run" in refused(str(tmp_path / "nowhere"))
    assert "leave out --data" in refused(str(run), "--sample", "--data", "x.h5ad")
    assert "must not be negative" in refused(str(run), "--tolerance", "-1")
    assert "nowhere.h5ad" in refused(str(run), "--data", str(tmp_path / "nowhere.h5ad"))
    sample = (run / "sample.json").read_text()
    for damaged in ("{", "[]", '{"sha256": "a", "means": {"x": "y"}}'):
        (run / "sample.json").write_text(damaged)
        assert "sample.json is damaged" in refused(str(run), "--sample")
    (run / "sample.json").unlink()
    assert "leave out --sample" in refused(str(run), "--sample")
    (run / "sample.json").write_text(sample)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("backbone: mlp", "backbone: os.path:join"))
    assert "if you trust it, --trust_packages os" in refused(str(run))
    (run / "config.yaml").write_text(config.replace("backbone: mlp", "bakbone: mlp"))
    assert "did you mean 'model.backbone'" in refused(str(run))
    facts = (run / "run.json").read_text()
    for damaged in ("{", "[]", "{}", '{"data": 1, "versions": {}}'):
        (run / "run.json").write_text(damaged)
        assert "run.json" in refused(str(run))
    (run / "run.json").write_text(facts)
    shutil.rmtree(run / "model")
    assert "is not finished" in refused(str(run))


def test_a_fit_measured_in_seconds_is_replayed_in_steps(screen, tmp_path, replay):
    words = [word for word in FIT if word not in ("--split", "unseen_combination", "--train.max_steps", "6")]
    run = tmp_path / "run"
    assert main(["fit", str(screen), *words, "--train.max_seconds", "0.5", "--out", str(run)]) == 0
    assert json.loads((run / "run.json").read_text())["steps"] >= 1
    code, said = replay(run)
    assert (code, said["outcome"]) == (0, "identical")


def test_changes_are_put_in_words():
    before = {
        "data": {"sha256": "a", "path": "x"},
        "split_hash": "s",
        "versions": {"torch": "1", "numpy": "1"},
        "device": "cpu",
        "threads": 1,
    }
    before["config"] = {"model": {"seed": 0}, "train": {"lr": 1}, "out": "here"}
    assert what_changed(before, before) == []
    watched = before | {"config": {"model": {"seed": 0}, "train": {"lr": 1, "logger": "wandb"}, "out": "here"}}
    assert what_changed(before, watched) == []  # who watches a training does not change it
    now = {"data": {"sha256": "b", "path": "y"}, "split_hash": "t", "versions": {"torch": "2", "numpy": "1"}, "device": "gpu", "threads": 2}
    now["config"] = {"model": {"seed": 0}, "train": {"lr": 2}, "out": "there"}
    kinds = [line.split(":")[0] for line in what_changed(before, now)]
    assert kinds == ["data", "split", "options", "version", "device", "threads"]


def test_samples_of_other_conditions_are_different():
    one, other = Sample("a", {"A": [1.0]}), Sample("b", {"B": [1.0]})
    assert compare_samples(one, other, (), 10.0).verdict == "different"
    assert compare_samples(one, Sample("b", {"A": [1.5]}), (), 0.5).verdict == "within tolerance"
    assert compare_samples(one, Sample("b", {"A": [1.5]}), (), 0.4).verdict == "different"
    assert compare_samples(one, Sample("b", {"A": [1.0, 1.0]}), (), 10.0).verdict == "different"
