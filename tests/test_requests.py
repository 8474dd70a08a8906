"""What is asked of a model: conditions once, cells counted like the training cells, genes that may be missing."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

import counterflow as cf
from counterflow.requests import requested_specs

TINY = {"anchor": "none", "backbone_kwargs": {"width": 8, "depth": 1}, "encoder_kwargs": {"width": 8}}


@pytest.fixture(scope="module")
def fitted(tiny_screen):
    """A model of half of the genes of the file: library sizes are sums over all of them."""
    adata = tiny_screen.adata.copy()
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
    cf.choose_genes(adata, list(adata.var_names[:15]), chosen_on=[])
    model = cf.CounterFlow(adata, **TINY)
    model.train(max_steps=1, progress=False)
    return model


def names(model) -> list[str]:
    return sorted(model.vocabulary.seen)


def test_a_condition_asked_for_twice_is_answered_once(fitted):
    a, b = names(fitted)[:2]
    with pytest.warns(cf.CounterflowWarning, match="2 of the 4 conditions were asked for before"):
        cells = fitted.predict(conditions=[f"{a}+{b}", a, f"{b} + {a}", a], n_cells=5)
    assert cells.n_obs == 10 and cells.obs_names.is_unique
    assert list(cells.obs["condition"].unique()) == [f"{a}+{b}", a]


def test_the_same_condition_in_two_contexts_is_asked_for_twice(declared):
    cf.CounterFlow.setup_anndata(declared, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    model = cf.CounterFlow(declared, **TINY)
    table = pd.DataFrame({"perturbation": names(model)[:1] * 3, "cell_type": ["type0", "type1", "type0"]})
    with pytest.warns(cf.CounterflowWarning, match="1 of the 3 conditions"):
        specs, chosen = requested_specs(table, "error", model.setup, model.vocabulary)
    assert len(specs) == 2 and list(chosen["cell_type"]) == ["type0", "type1"]
    model.train(max_steps=1, progress=False)
    new = model.generate(table.iloc[:2], 3)
    assert new.n_obs == 6 and new.obs_names.is_unique


def said_of(fitted, adata, **options) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", cf.CounterflowWarning)
        fitted.predict(adata, names(fitted)[0], n_cells=3, **options)
    return " ".join(str(warning.message) for warning in caught)


def test_library_sizes_of_another_kind_are_told(fitted, tiny_screen):
    adata = tiny_screen.adata
    assert said_of(fitted, adata) == ""
    assert "hold 100% of the counts of these cells" in said_of(fitted, adata[:, :15].copy())
    deeper = adata.copy()
    deeper.X = deeper.X * 5
    assert "far from what the model knows" in said_of(fitted, deeper)


def test_missing_genes_are_zeros_where_they_may_be(fitted, tiny_screen):
    adata = tiny_screen.adata
    fewer = adata[:, [g for g in adata.var_names if g != fitted.genes[4]]].copy()
    with pytest.raises(cf.DataError, match="1 of the model's 15 genes .* missing_genes='zero'"):
        fitted.predict(fewer, names(fitted)[0])
    said = said_of(fitted, fewer, missing_genes="zero")
    assert "they count as zero" in said
    zeroed = adata.copy()
    zeroed.X = sparse_without(zeroed.X, 4)
    one = fitted.predict(fewer, names(fitted)[0], missing_genes="zero")
    other = fitted.predict(zeroed, names(fitted)[0])
    assert np.array_equal(one.layers["counts"].toarray(), other.layers["counts"].toarray())
    with pytest.raises(cf.DataError, match="10% of them at most"):
        fitted.predict(adata[:, 2:].copy(), names(fitted)[0], missing_genes="zero")
    with pytest.raises(cf.ConfigError, match="missing_genes='zeros' is unknown: did you mean 'zero'"):
        fitted.predict(adata, names(fitted)[0], missing_genes="zeros")


@pytest.mark.parametrize("library_size_key", [None, "depth"])
def test_genes_are_aligned_by_name_to_the_bit_and_counted(tiny_screen, library_size_key):
    adata = tiny_screen.adata.copy()
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", library_size_key=library_size_key)
    model = cf.CounterFlow(adata, **TINY)
    model.train(max_steps=1, progress=False)
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    draw = np.random.default_rng(0)
    count = 3 if library_size_key else 0  # without a library size, a count of another gene is a count of the cell
    others = anndata.AnnData(np.full((controls.n_obs, 7), count), var=pd.DataFrame(index=[f"other{i}" for i in range(7)]))
    superset = anndata.concat([anndata.AnnData(controls.X, var=controls.var[[]]), others], axis=1)
    superset.obs = controls.obs
    superset = superset[:, draw.permutation(superset.n_vars)].copy()
    permuted = controls[:, draw.permutation(controls.n_vars)].copy()
    expected = model.predict(controls, names(model)[0])
    for given, extra in ((controls, 0), (permuted, 0), (superset, 7), (None, 0)):
        cells = model.predict(given, names(model)[0])
        assert cells.uns["counterflow"]["genes"] == {"used": 30, "extra": extra, "missing": 0}
        assert np.array_equal(cells.layers["mean"], expected.layers["mean"])
        assert np.array_equal(cells.layers["counts"].toarray(), expected.layers["counts"].toarray())
    with pytest.warns(cf.CounterflowWarning, match="7 genes of these cells are not the model's"):
        model.predict(superset, names(model)[0])
    fewer = model.predict(superset[:, superset.var_names != model.genes[0]].copy(), names(model)[0], missing_genes="zero")
    assert fewer.uns["counterflow"]["genes"] == {"used": 29, "extra": 7, "missing": 1}


def sparse_without(matrix, gene: int):
    dense = matrix.toarray()
    dense[:, gene] = 0
    return type(matrix)(dense)


def test_controls_without_a_covariate_are_refused(declared):
    cf.CounterFlow.setup_anndata(declared, perturbation_key="perturbation", control="control", covariate_keys=["cell_type"])
    model = cf.CounterFlow(declared, **TINY)
    model.train(max_steps=1, progress=False)
    controls = declared[declared.obs["perturbation"] == "control"].copy()
    controls.obs["cell_type"] = controls.obs["cell_type"].astype(object).where(controls.obs_names != controls.obs_names[3], None)
    with pytest.raises(cf.DataError, match="1 cells have no value in adata.obs\\['cell_type'\\]"):
        model.predict(controls, names(model)[0])


def test_features_must_name_perturbations(declared):
    seen = sorted(set("+".join(declared.obs["perturbation"].unique()).split("+")) - {"control"})
    with pytest.raises(cf.DataError, match="names none of the .* perturbations .*one side has Ensembl ids"):
        cf.CounterFlow(declared, perturbation_features=pd.DataFrame({"a": [0.0, 1.0]}, index=["ENSG01", "ENSG02"]), **TINY)
    with pytest.warns(cf.CounterflowWarning, match="names 1 of"):
        cf.CounterFlow(declared, perturbation_features=pd.DataFrame({"a": [0.0, 1.0]}, index=[seen[0], "X"]), **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", cf.CounterflowWarning)
        table = pd.DataFrame({"a": np.arange(len(seen), dtype=float)}, index=seen)
        cf.CounterFlow(declared, perturbation_features=table, **TINY)
