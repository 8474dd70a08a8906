"""Models saved by this version's schema load in every later version and say the same. `python tests/golden/make.py` writes them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from counterflow import CheckpointError, ConfigError, CounterFlow, checkpoint

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("latent_mlp", "pca_mlp", "raw_dit")
SCHEMAS = tuple(range(checkpoint.OLDEST, checkpoint.SCHEMA + 1))


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_of_each_kind_and_they_are_small(make):
    assert sorted(make.MODELS) == sorted(NAMES)
    assert sorted(path.name for path in GOLDEN.glob("schema*")) == [f"schema{schema}" for schema in SCHEMAS]
    for schema in SCHEMAS:
        folder = GOLDEN / f"schema{schema}"
        assert sorted(NAMES) == sorted(path.name for path in folder.iterdir() if (path / "model.json").is_file())
        assert sum(file.stat().st_size for file in folder.rglob("*")) < 200_000
        for name in NAMES:
            manifest = checkpoint.read_manifest(folder / name)
            assert json.loads((folder / name / "model.json").read_text())["schema"] == schema and manifest["schema"] == checkpoint.SCHEMA
            assert (manifest["rule"] is not None) == (name != "raw_dit")
            assert (manifest["intervals"] is not None) == (schema > 3 and name != "raw_dit")


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_golden_model_says_what_it_said(make, name, schema):
    folder = GOLDEN / f"schema{schema}"
    found, expected = make.predicted(CounterFlow.load(folder / name)), load_file(folder / f"{name}.expected.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key.endswith("mean"):
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)
        else:  # a count is drawn: where its expectation is a rounding error away, it may be another
            assert (found[key] == value).mean() > 0.99 and np.abs(found[key] - value).max() <= 2


@pytest.mark.parametrize("schema", [1, 2])
def test_schemas_that_were_never_released_are_refused(schema, tmp_path):
    shutil.copytree(GOLDEN / f"schema{checkpoint.SCHEMA}" / "pca_mlp", tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(checkpoint.signed({**manifest, "schema": schema})))
    with pytest.raises(CheckpointError, match=rf"before the first release \(schema {schema}\): fit it again"):
        CounterFlow.load(tmp_path / "model")


def test_a_model_from_before_there_were_intervals_says_that_it_has_none():
    model = CounterFlow.load(GOLDEN / "schema3" / "pca_mlp")
    with pytest.raises(ConfigError, match="interval=None"):
        model.predict_effect(sorted(model.vocabulary.seen)[0])
    model.predict_effect(sorted(model.vocabulary.seen)[0], None)


ELSEWHERE = """
import sys, numpy as np
from counterflow import CounterFlow
model = CounterFlow.load(sys.argv[1])
assert model.adata is None
name = sorted(model.vocabulary.seen)[0]
np.save(sys.argv[2], model.predict(conditions=name, n_cells=5).layers["mean"])
"""


def test_a_model_predicts_where_its_data_are_not(make, tmp_path):
    from counterflow import read_h5ad, simulate_screen

    data = tmp_path / "data"
    data.mkdir()
    simulate_screen(n_genes=16, n_perturbations=3, n_pairs=2, cells_control=60, cells_per_condition=20).adata.write_h5ad(data / "here.h5ad")
    adata = read_h5ad(data / "here.h5ad")
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
    model = CounterFlow(adata, **make.SMALL, **make.MODELS["pca_mlp"])
    model.train(max_steps=2, progress=False)
    model.save(tmp_path / "model")
    name = sorted(model.vocabulary.seen)[0]
    expected = CounterFlow.load(tmp_path / "model").predict(conditions=name, n_cells=5).layers["mean"]
    shutil.rmtree(data)
    assert "here.h5ad" not in (tmp_path / "model" / "model.json").read_text()
    away = tmp_path / "away"
    away.mkdir()
    os.rename(tmp_path / "model", away / "moved")
    (away / "empty").mkdir()
    source = str(Path(__file__).parents[1] / "src")
    environment = {k: v for k, v in os.environ.items() if k != "COUNTERFLOW_DATA"} | {"PYTHONPATH": source}
    words = [sys.executable, "-c", ELSEWHERE, str(away / "moved"), str(away / "out.npy")]
    subprocess.run(words, cwd=away / "empty", env=environment, check=True, capture_output=True, timeout=120)
    assert np.array_equal(np.load(away / "out.npy"), expected)
