"""Every file in configs/ is complete: it parses, its data are found, and its model can be built. Two of them train, and that of images."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import yaml

from counterflow.cli import fit, main
from counterflow.cli.screen import declare_and_split, read_data, setup_from
from counterflow.data import simulate
from counterflow.errors import DataError
from counterflow.model import CounterFlow

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DATA = Path(os.environ.get("COUNTERFLOW_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def small_screen(monkeypatch):
    """`simulated` is the small screen here: the files are tested, not the patience of the reader."""
    small = simulate.simulate_screen(**simulate.SMALL, seed=0)
    monkeypatch.setattr(simulate, "simulate_screen", lambda: small)


def test_there_is_one_for_every_backbone_and_space():
    expected = {
        f"{backbone}_{space}" for backbone in ("mlp", "dit", "set", "ssm", "longconv", "hybrid") for space in ("raw", "pca", "latent")
    }
    assert expected | {"norman", "kang", "a549"} == {path.stem for path in CONFIGS}


def test_all_of_them_say_the_same_but_for_what_they_are_about():
    keys = {
        path.stem: [line.split(":")[0] for line in path.read_text().splitlines() if not line.startswith("#")]
        for path in CONFIGS
        if "_" in path.stem
    }
    assert len({tuple(lines) for lines in keys.values()}) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_and_builds(path, tmp_path):
    options, _ = fit.parser().parse(["--config", str(path)])
    options.split_seed, options.model.seed = options.seed, options.seed
    source = options.data.path
    if source != "simulated":
        source = str(DATA / Path(source).name)
        if not Path(source).exists():
            pytest.skip(f"the data of {path.name} are not on this machine")
    adata = read_data(source)
    setup, split = declare_and_split(adata, setup_from(options, source), options)
    assert split is not None and setup.split_key is not None
    if options.model.space_kwargs and options.model.space == "pca":
        options.model.space_kwargs["n_components"] = 10
    model = CounterFlow(adata, **options.model.as_dict())
    assert model.config["backbone"] == options.model.backbone and model.config["space"] == options.model.space
    if path.stem not in ("norman", "kang", "a549"):
        assert path.stem == f"{options.model.backbone}_{options.model.space}" == Path(options.out).name


@pytest.mark.parametrize("name", ["mlp_pca", "dit_raw"])
def test_it_trains(name, tmp_path, monkeypatch):
    monkeypatch.setattr("counterflow.cli.fit._scores", lambda *_: None)  # scoring has its own tests
    run = tmp_path / "run"
    words = [
        "fit",
        "--config",
        str(ROOT / "configs" / f"{name}.yaml"),
        "--train.max_steps",
        "5",
        "--train.batch_size",
        "32",
        "--train.set_size",
        "16",
    ]
    assert main([*words, "--out", str(run), "--quiet"]) == 0
    assert (run / "model" / "model.json").is_file()
    assert CounterFlow.load(run).predict(conditions="control", n_cells=2, n_steps=1).n_obs == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "image").glob("*.yaml")), ids=lambda path: path.stem)
def test_that_of_images_trains(path, tmp_path, monkeypatch):
    """Both objectives, for two steps: every sampler gives images, and the judge speaks."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    digits = importlib.import_module("image_digits")
    monkeypatch.setattr(importlib.import_module("image_judge"), "N_STEPS", 250)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["train"]["max_steps"] = 2
    config["sample"] |= {"n_images": 20, "steps": [2]}
    result = digits.experiment(config, tmp_path / "samples.png")
    assert len(result["rows"]) == len(digits.SAMPLERS) * len(config["sample"]["guidance"])
    assert all(0 <= row["accuracy"] <= 1 and row["frechet"] > 0 for row in result["rows"])
    assert result["real"]["held out"]["accuracy"] > 0.9
    assert (tmp_path / "samples.png").stat().st_size > 1000
    with pytest.raises(TypeError, match="widht"):  # a misspelt key fails
        digits.build("flow", config | {"model": {"widht": 64}}, (1, 8, 8))


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_data(str(tmp_path / "nothing.h5ad"))
