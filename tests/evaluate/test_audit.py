"""Every kind of leak is planted once, and found; a clean pipeline passes. The leaks are those of benchmarks/planted_leaks.py."""

import importlib.util
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.stats import poisson

import counterflow as cf
from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.screen import read_screen
from counterflow.evaluate.audit import audit_model, audit_split, cells_in_two_sets, surprise
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.evaluate import evaluate

FILE = Path(__file__).parents[2] / "benchmarks" / "planted_leaks.py"


def load():
    spec = importlib.util.spec_from_file_location("planted_leaks", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_leaks"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


planted = load()
KINDS = {
    "gene selection", "PCA", "VAE", "scaler", "features", "DE gene list", "early stopping", "guidance", "recipe (calibration)",
    "a cell in two sets", "duplicate cells", "unseen entity without features", "additive rule", "training",
}  # fmt: skip


@pytest.fixture(scope="module")
def adata():
    return planted.screen(validation=True)


@pytest.fixture(scope="module")
def model(adata):
    return planted.fit(adata.copy(), anchor="additive")


def test_a_leak_of_each_kind_is_planted():
    assert {leak.name for leak in planted.LEAKS} >= KINDS
    assert all(leak.audit or leak.poison for leak in planted.LEAKS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("leak", planted.LEAKS, ids=lambda leak: leak.name)
def test_the_planted_leak_is_found(leak):
    audited, poisoned = planted.run(leak)
    for (passed, text), words in ((audited, leak.audit), (poisoned, leak.poison)):
        assert words in text and passed == (not words), text


@pytest.mark.parametrize("pipeline", planted.CLEAN, ids=lambda pipeline: pipeline.name)
def test_a_clean_pipeline_passes_both(pipeline):
    (audited, a), (poisoned, b) = planted.run(pipeline)
    assert audited, a
    assert poisoned, b


def test_everything_that_is_fitted_is_in_the_ledger(model, adata):
    assert set(model.audit(adata).removeprefix("leak audit passed: ").split("; ")[0].split(", ")) == {
        "features", "space", "rule", "weights", "recipe", "validation", "reference",
    }  # fmt: skip
    train = (adata.obs["split"] == "train").sum()
    counted = {stage: len(keys.name) for stage, keys in model.ledger.seen.items()}
    assert counted["space"] == counted["rule"] == counted["weights"] == counted["recipe"] == train
    assert counted["features"] == ((adata.obs["split"] == "train") & (adata.obs["perturbation"] == "control")).sum()


def test_the_message_counts_and_names_the_cells_of_every_stage(model, adata):
    moved = adata.copy()
    some = list(moved.obs_names[(moved.obs["split"] == "train") & (moved.obs["perturbation"] != "control")][:2])
    moved.obs.loc[some, "split"] = "test"
    with pytest.raises(cf.DataError) as error:
        audit_model(model, moved)
    text = str(error.value)
    assert f"saw 2 test cells (first: '{some[0]}', '{some[1]}'): fit again with the split_key" in text
    for stage in ("the space (PCA, VAE, scaler)", "the additive rule", "training of the flow", "how far the flow is trusted"):
        assert stage in text
    assert "perturbation features" not in text and "validation" not in text


def test_validation_cells_may_be_watched_and_nothing_else_while_choosing(model, adata):
    assert "validation" in audit_model(model, adata, subset="val")
    moved = adata.copy()
    moved.obs.loc[moved.obs_names[(moved.obs["split"] == "train") & (moved.obs["perturbation"] != "control")][:3], "split"] = "val"
    assert audit_model(model, moved)  # of no concern while testing
    with pytest.raises(cf.DataError, match=r"saw 3 test/val cells"):
        audit_model(model, moved, subset="val")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_names_of_other_cells_are_no_leak_when_several_share_them(model, adata):
    """Barcodes that occur once per batch: only name and counts together tell the cells apart."""
    twice = adata.copy()
    names = np.array(twice.obs_names, dtype=object)
    test, train = (np.flatnonzero(twice.obs["split"] == which) for which in ("test", "train"))
    names[test[:4]] = names[train[:4]]
    twice.obs_names = names
    assert audit_model(model, twice).startswith("leak audit passed")
    alone = twice[twice.obs["split"] == "test"].copy()  # here the names are unique, and ledger and screen agree on them
    both = anndata.concat([alone, twice[train[4:]]], uns_merge="first")
    with pytest.raises(cf.DataError, match="saw 4 test cells"):
        audit_model(model, both)


def test_cells_called_by_their_number_are_told_apart_by_their_counts(adata):
    """Cell 17 of another file is another cell; cell 17 of this file is the same."""
    numbered = adata.copy()
    numbered.obs_names = [str(i) for i in range(adata.n_obs)]
    model = planted.fit(numbered)
    other = numbered[::-1].copy()
    other.obs_names = numbered.obs_names
    other.X = other.X[:, np.random.default_rng(0).permutation(adata.n_vars)]
    assert audit_model(model, other).startswith("leak audit passed")
    numbered.obs.loc[numbered.obs_names[(numbered.obs["split"] == "train").to_numpy()][:3], "split"] = "test"
    with pytest.raises(cf.DataError, match="saw 3 test cells"):
        audit_model(model, numbered)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_a_copy_is_found_with_fewer_genes_in_another_order(adata):
    clean = planted.fit(adata.copy(), n_top_genes=40)
    copies = adata[adata.obs["split"] == "train"][:3].copy()[:, ::-1].copy()
    copies.obs_names = ["x", "y", "z"]
    copies.obs["split"] = "test"
    both = planted.declared(anndata.concat([adata[(adata.obs["split"] == "test").to_numpy()], copies, planted.screen()[300:]]), "split")
    with pytest.raises(cf.DataError, match=r"saw 3 test cells \(first: 'x', 'y', 'z'\) \(3 of them under another name\)"):
        audit_model(clean, both)


def test_saved_and_loaded_it_says_the_same(model, adata, tmp_path):
    model.save(tmp_path / "m")
    loaded = cf.CounterFlow.load(tmp_path / "m")
    assert loaded.audit(adata) == model.audit(adata)
    with pytest.raises(cf.DataError, match="84 test cells"):
        planted.training_on_all_cells(adata.copy()).audit(adata)
    with pytest.raises(cf.ConfigError, match="loaded without data"):
        loaded.audit()


def test_a_fit_anew_starts_a_new_page(adata):
    twice = planted.fit(adata.copy())
    cf.choose_guidance(twice, adata, (1.0,), subset="test", n_steps=2)
    with pytest.raises(cf.DataError, match="guidance"):
        twice.audit(adata)
    twice.train(max_steps=2, progress=False)
    assert twice.audit(adata).startswith("leak audit passed")


def test_features_handed_in_without_a_word_are_not_known(adata):
    import pandas as pd

    table = pd.DataFrame(np.eye(6), index=sorted({p for n in adata.obs["perturbation"] for p in n.split("+")} - {"control"}))
    assert "not known: genes, features" in planted.fit(adata.copy(), perturbation_features=table).audit(adata)


def test_unknown_perturbations_are_a_remark_where_the_mean_effect_is_asked_for():
    adata = planted.with_an_unseen_gene()
    model = planted.features_without_the_unseen_gene(adata.copy())
    assert "predicted by the mean effect, for want of features: G0" in audit_model(model, adata, on_unknown="mean")


def test_surprise_is_the_poisson_probability_of_the_whole_cell(adata):
    cells = read_screen(adata, setup_of(adata))
    x = cells.counts.toarray().astype(float)
    mean = x.sum(1, keepdims=True) * x.sum(0) / x.sum()
    np.testing.assert_allclose(surprise(cells), -poisson.logpmf(x, mean).sum(1, where=mean > 0), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_nearly_empty_cells_may_coincide_but_not_under_one_name(adata):
    few = adata.copy()
    x = few.X.toarray()
    test, train = (np.flatnonzero(few.obs["split"] == which)[0] for which in ("test", "train"))
    x[[test, train]] = 0
    x[[test, train], 7] = 1
    few.X = x
    assert list(cells_in_two_sets(read_screen(few, setup_of(few)))) == []
    names = np.array(few.obs_names, dtype=object)
    names[test] = names[train]
    few.obs_names = names
    assert "1 cells sit in two sets" in next(iter(cells_in_two_sets(read_screen(few, setup_of(few)))))


def test_evaluate_says_what_was_audited_or_refuses(model, adata):
    quick = {"metrics": ("mse",), "n_halvings": 1}
    assert any(note.startswith("counterflow: leak audit passed: ") for note in evaluate({"counterflow": model}, adata, **quick).notes)
    with pytest.raises(cf.DataError, match=r"^leaky: the leak audit failed: "):
        evaluate({"leaky": planted.training_on_all_cells(adata.copy())}, adata, **quick)
    baseline = BASELINES["mean"]()
    baseline.train(adata)
    assert not any("audit" in note for note in evaluate({"own": baseline}, adata, **quick).notes)


def test_a_split_with_a_cell_on_both_sides_is_refused():
    adata = planted.with_cells_in_two_sets("copy of {}".format)()
    with pytest.raises(cf.DataError, match="5 cells sit in two sets"):
        audit_split(adata)


def test_a_split_that_breaks_its_promise_is_refused(adata):
    split = cf.build_split("unseen_combination", adata.obs, planted_keys(adata))
    labelled = adata.copy()
    labelled.obs["split"] = split.labels(labelled.obs)
    audit_split(labelled, split)
    single = next(name for name in adata.obs["perturbation"] if name != "control" and "+" not in name)
    split.assignment[single] = "test"
    with pytest.raises(cf.DataError, match=f"the single '{single}' is held out"):
        audit_split(labelled, split)


def planted_keys(adata):
    from counterflow.data.split_file import Keys

    return Keys("perturbation", "control")


def test_without_a_split_there_is_nothing_to_audit(model, adata):
    bare = adata.copy()
    declare(bare, Setup("perturbation", "control"))
    with pytest.raises(cf.DataError, match="nothing is held out"):
        model.audit(bare)
