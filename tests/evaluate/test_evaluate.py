import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.schema import Setup, declare
from counterflow.errors import ConfigError, DataError
from counterflow.evaluate.evaluate import evaluate
from counterflow.evaluate.scoring import effect_scale
from counterflow.evaluate.truth import project, read_truth

FAST = ("pearson_delta", "mse", "energy")


def test_one_row_per_method_condition_and_metric(table, simulated):
    rows = table.rows
    assert not rows.duplicated(["method", "condition", "context", "metric"]).any()
    assert set(rows["kind"]) == {"model", "baseline", "ceiling"}
    assert {"control", "mean", "additive", "split_half"} <= set(rows["method"])
    assert rows.groupby("method").size().nunique() == 1
    assert set(rows["stratum"]) == {"combo_seen2"}
    assert rows.drop_duplicates("condition")["third"].value_counts().to_dict() == {"weak": 4, "middle": 3, "strong": 3}


def test_the_ceiling_is_above_the_floor_and_the_truth_near_the_ceiling(table):
    delta, energy = table.per_condition("pearson_delta").mean(), table.per_condition("energy").mean()
    assert delta["split_half"] > delta["mean"] + 0.2
    assert delta["honest"] > delta["split_half"] - 0.05  # it has no sampling noise of its own in the effect
    assert energy["split_half"] == pytest.approx(0, abs=0.15)
    assert energy["honest"] < energy["mean"] / 3


def test_same_seed_same_table_and_another_seed_other_halves(simulated, honest):
    one, two, other = (evaluate({"honest": honest}, simulated.adata, metrics=FAST, n_halvings=1, seed=s).rows["value"] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one - other).abs().max() > 1e-3


def test_rows_are_scored_against_half_of_the_cells_not_all_of_them(simulated):
    """A predictor that returns all real cells would have error 0 against all of them."""

    class Leak:
        def predict(self, adata: AnnData, conditions):
            return log_cells(simulated.adata, conditions)

    def log_cells(adata, conditions):
        some = adata[adata.obs["perturbation"] == conditions["perturbation"].iloc[0]]
        x = some.X.toarray()
        return AnnData(np.log1p(1e4 * x / x.sum(1, keepdims=True)), obs=some.obs.copy(), var=some.var.copy())

    wide = evaluate({"leak": Leak()}, simulated.adata, metrics=FAST, n_halvings=4).per_condition("mse").mean()
    assert 0 < wide["leak"] < wide["split_half"]


def test_the_perturbed_gene_is_left_out(simulated, honest):
    """Setting the perturbed genes to nonsense changes no score."""

    class Nonsense:
        def predict(self, adata, conditions):
            out = honest.predict(adata, conditions)
            x = out.X.toarray()
            x[:, out.var_names.get_indexer(conditions["perturbation"].iloc[0].split("+"))] = 50
            return AnnData(x, obs=out.obs, var=out.var)

    metrics = (*FAST, "pds_cosine", "wmse", "pearson_delta_pertref")
    table = evaluate({"honest": honest, "nonsense": Nonsense()}, simulated.adata, metrics=metrics, n_halvings=2)
    for metric in metrics:
        wide = table.per_condition(metric)
        np.testing.assert_allclose(wide["nonsense"], wide["honest"], rtol=1e-4, atol=1e-5, err_msg=metric)


def test_the_scoring_pca_never_saw_a_source_or_held_out_cell(simulated):
    """Rewriting those cells leaves the axes as they are; rewriting a training cell does not."""
    adata = simulated.adata
    truth = read_truth(adata, "test", 0)
    sources = truth.contexts[0].sources
    assert 0 < len(sources) < (adata.obs["perturbation"] == "control").sum()
    for rows, same in ((sources, True), (truth.units[0].real, True), (np.flatnonzero(truth.screen.split == "train"), False)):
        changed = adata.copy()
        x = changed.X.toarray()
        x[rows] = x[rows][:, ::-1]
        changed.X = x
        axes = read_truth(changed, "test", 0).contexts[0].pca.components_
        assert np.allclose(axes, truth.contexts[0].pca.components_) is same


def test_few_controls_are_all_sources_and_contexts_have_their_own_pca(simulated):
    adata = simulated.adata[np.r_[0 : simulated.adata.n_obs : 2]].copy()
    few = read_truth(adata, "test", 0)
    assert len(few.contexts[0].sources) == (adata.obs["perturbation"] == "control").sum()
    adata.obs["lane"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    declare(adata, Setup("perturbation", "control", split_key="split", match_keys=("lane",)))
    two = read_truth(adata, "test", 0)
    assert len(two.contexts) == 2 and len(two.units) == 20
    assert not np.allclose(two.contexts[0].pca.components_, two.contexts[1].pca.components_)
    for unit in two.units:
        assert set(adata.obs["lane"].iloc[unit.real]) == {unit.context}


def test_a_dropped_gene_tells_nothing(simulated):
    truth = read_truth(simulated.adata, "test", 0)
    cells = truth.log(np.arange(5))
    kept = np.ones(cells.shape[1], dtype=bool)
    kept[7] = False
    other = cells.copy()
    other[:, 7] += 9
    np.testing.assert_allclose(project(truth.contexts[0].pca, cells, kept), project(truth.contexts[0].pca, other, kept))


def test_the_reference_of_a_held_out_context_is_its_control_plus_the_mean_effect(simulated):
    adata = simulated.adata.copy()
    adata.obs["lane"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.obs["split"] = np.where((adata.obs["lane"] == "a") & (adata.obs["perturbation"] != "control"), "test", "train")
    declare(adata, Setup("perturbation", "control", split_key="split", match_keys=("lane",)))
    truth = read_truth(adata, "test", 0)
    log = truth.log(np.arange(adata.n_obs)).astype(float)
    b = (adata.obs["lane"] == "b").to_numpy()
    label = adata.obs["perturbation"].astype(str).to_numpy()
    means = [log[b & (label == name)].mean(0) for name in sorted(set(label) - {"control"})]
    wanted = log[~b & (label == "control")].mean(0) + np.mean(means, 0) - log[b & (label == "control")].mean(0)
    np.testing.assert_allclose(truth.reference_mean(0), wanted, atol=1e-5)


def test_models_of_fewer_genes_are_scored_on_those(simulated, honest):
    class Some:
        def predict(self, adata, conditions):
            return honest.predict(adata, conditions)[:, 10:40]

    table = evaluate({"some": Some()}, simulated.adata, metrics=FAST, n_halvings=1)
    assert "30 of 80 genes" in table.notes[0]
    assert np.isfinite(table.rows["value"][(table.rows["metric"] == "mse") & (table.rows["method"] != "replicate")]).all()


def test_classifiers_see_all_of_a_prediction_not_the_first_cells_of_its_file():
    """Controls that lie in the file one batch after the other, and a prediction that keeps their order."""
    rng = np.random.default_rng(0)
    n = 900
    rate = np.full((2, 30), 3.0)
    rate[1, :10] = 9.0  # the second batch is another one
    batch = np.repeat([0, 1], n // 2)
    counts = np.concatenate([rng.poisson(rate[batch]), rng.poisson(rate[rng.permutation(batch)]), rng.poisson(rate[batch[::300]])])
    labels = ["control"] * n + ["a"] * n + ["b"] * 3
    split = ["test" if label == "a" else "train" for label in labels]
    obs = pd.DataFrame({"perturbation": labels, "split": split}, index=[f"c{i}" for i in range(len(labels))])
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    declare(adata, Setup("perturbation", "control", split_key="split"))
    values = evaluate({}, adata, metrics=("c2st_gene",), n_halvings=1, baselines=()).per_condition("c2st_gene")
    assert values["control"].item() < 0.65  # the perturbation does nothing


def test_effect_scale_is_the_factor_that_fits_best():
    real = np.array([1.0, -2.0, 3.0])
    assert effect_scale(3 * real, real) == pytest.approx(1 / 3)
    assert np.isnan(effect_scale(0 * real, real))


def test_errors_say_what_to_do(simulated, honest):
    adata = simulated.adata
    with pytest.raises(ConfigError, match="pearson_delta"):
        evaluate({}, adata, metrics=("pearson_delt",))
    with pytest.raises(ConfigError, match="additive"):
        evaluate({}, adata, baselines=("aditive",))
    with pytest.raises(ConfigError, match="reference row"):
        evaluate({"control": honest}, adata)
    with pytest.raises(DataError, match="'val'"):
        evaluate({}, adata, subset="val")
    bare = adata.copy()
    declare(bare, Setup("perturbation", "control"))
    with pytest.raises(DataError, match="split_key"):
        evaluate({}, bare)


def test_a_backed_screen_and_few_controls_are_scored_like_any_other(simulated, honest, tmp_path):
    few = simulated.adata[::2].copy()
    few.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    one, two = (evaluate({"honest": honest}, adata, metrics=("mse",), n_halvings=1).rows for adata in (few, backed))
    np.testing.assert_array_equal(one["value"], two["value"])


def test_predictions_start_from_whole_repeats_of_few_controls(simulated):
    """At least 200 of them, each as often as any other."""
    seen = {}

    class Watch:
        def predict(self, adata, conditions):
            seen["cells"] = np.bincount(pd.factorize(adata.obs["n_counts"].to_numpy())[0])
            return log_controls(adata)

    def log_controls(adata):
        x = adata.X.toarray()
        return AnnData(np.log1p(1e4 * x / x.sum(1, keepdims=True)), obs=adata.obs.copy(), var=adata.var.copy())

    rows = simulated.adata.obs["perturbation"].astype(str).to_numpy()
    kept = np.ones(len(rows), dtype=bool)
    kept[np.flatnonzero(rows == "control")[30:]] = False
    evaluate({"watch": Watch()}, simulated.adata[kept].copy(), metrics=("mse",), n_halvings=1)
    assert seen["cells"].sum() >= 200
