"""One call from a file in another tool's convention to declared cells."""

import importlib.util
from pathlib import Path

import pytest

import counterflow as cf
from counterflow.errors import ConfigError, CounterflowWarning, DataError

spec = importlib.util.spec_from_file_location("labelings", Path(__file__).parent / "test_labelings.py")
labelings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(labelings)


@pytest.mark.parametrize("name", sorted(labelings.FILES))
def test_a_file_is_read_declared_and_said(name, tmp_path):
    adata, expected = labelings.FILES[name]
    adata.copy().write_h5ad(tmp_path / "screen.h5ad")
    with pytest.warns(CounterflowWarning, match="screen.h5ad was declared as.*Look whether that is right"):
        read = cf.load_screen(tmp_path / "screen.h5ad")
    setup = read.uns["_counterflow"]
    assert {key: setup[key] for key in expected} == expected
    assert cf.CounterFlow(read, space_kwargs={"n_components": 3}).vocabulary.seen


def test_what_the_user_knows_better_is_taken(tmp_path):
    adata, _ = labelings.FILES["GEARS"]
    adata.copy().write_h5ad(tmp_path / "screen.h5ad")
    with pytest.warns(CounterflowWarning, match="covariate_keys=\\['cell_type'\\]"):
        read = cf.load_screen(tmp_path / "screen.h5ad", covariate_keys=["cell_type"])
    assert read.uns["_counterflow"]["covariate_keys"] == ["cell_type"]


def test_what_cannot_be_told_is_asked_for(tmp_path):
    adata = labelings.screen(what=labelings.cycle("a", "b", "c"))
    adata.write_h5ad(tmp_path / "screen.h5ad")
    with pytest.raises(DataError, match="give perturbation_key=... and control=... .columns: what."):
        cf.load_screen(tmp_path / "screen.h5ad")
    with pytest.raises(ConfigError, match="no argument 'contrl'.*control"):
        cf.load_screen(tmp_path / "screen.h5ad", contrl="a")
    with pytest.warns(CounterflowWarning, match="control='a'"):
        read = cf.load_screen(tmp_path / "screen.h5ad", perturbation_key="what", control="a")
    assert read.uns["_counterflow"]["control"] == "a"
