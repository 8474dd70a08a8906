"""The exported pairs are what they claim to be, and scorers written by others agree with ours on them.

`cell-eval2` (extra ``eval``) is run on the files as they are. Where its definition is another one, the test says how and bridges it:

- it keeps the perturbed gene in means, errors and correlations; ours leaves it out *before* the call, so both are given all genes here;
- its PDS drops the target genes of the whole panel (``panel``) or those of the row (``row``), ours those of the two conditions compared
  (`leave_out`): ours is given the genes that are left;
- on counts its profiles are log1p of 50,000 times the share of a gene in the *summed* counts, not a mean over cells: ours is given those;
- its Wilcoxon test has no continuity correction and corrects within genes above 5 counts per million: ours is given its tables.
"""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.simulate import simulate_screen
from counterflow.errors import ConfigError, DataError
from counterflow.evaluate import metrics
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.cell_eval import CONTROL, cell_eval_pairs, to_cell_eval

HERE, ELSEWHERE = "type0", "type1"
AGREE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def adata():
    """Ten genes perturbed in two cell types; one cell type is held out. The file holds 7 of 8 parts of the counts."""
    simulated = simulate_screen(
        n_genes=70, n_perturbations=10, n_pairs=0, cells_per_condition=60, cells_control=160, n_cell_types=2, n_batches=1, seed=3
    )
    adata = simulated.adata
    held_out = (adata.obs["cell_type"] == HERE) & (adata.obs["perturbation"] != "control")
    adata.obs["split"] = np.where(held_out, "test", "train")
    adata.obs["n_full"] = np.rint(adata.obs["n_counts"] * 8 / 7)
    declare(adata, Setup("perturbation", "control", match_keys=("cell_type",), library_size_key="n_full", split_key="split"))
    return adata


class Recorder:
    """Predicts by `predictor` and remembers what it was asked and what it answered."""

    def __init__(self, predictor, change=None):
        self.predictor, self.change, self.asked, self.answered = predictor, change, [], []

    def predict(self, adata, conditions):
        cells = self.predictor.predict(adata, conditions)
        if self.change is not None:
            cells = self.change(cells.copy())
        self.asked.append(adata.obs_names)
        self.answered.append(cells)
        return cells


@pytest.fixture(scope="module")
def model(adata):
    model = cf.CounterFlow(adata, backbone_kwargs={"size": "XS"}, space_kwargs={"n_components": 8})
    model.train(max_steps=5, progress=False)
    return model


@pytest.fixture(scope="module")
def exported(adata, model, tmp_path_factory):
    """The files of a model and a simple rule, both input types: input type -> name -> AnnData."""
    rule = BASELINES["additive"]()
    rule.train(adata)
    out = tmp_path_factory.mktemp("export")
    files = {
        "lognorm": to_cell_eval({"model": Recorder(model), "additive": rule}, adata, out / "lognorm"),
        "counts": to_cell_eval({"model": model}, adata, out / "counts", input_type="counts"),
    }
    assert [list(of) for of in files.values()] == [[HERE], [HERE]]  # one file per held-out context
    assert files["lognorm"][HERE]["model"] == out / "lognorm" / HERE / "model.h5ad"
    return {kind: of_context[HERE] for kind, of_context in files.items()}


@pytest.fixture(scope="module")
def read(exported):
    return {kind: {name: anndata.read_h5ad(path) for name, path in files.items()} for kind, files in exported.items()}


def cells_of(pair_side, label):
    return pair_side[pair_side.obs["target"] == label].X.toarray()


def means(pair_side, labels):
    return np.array([cells_of(pair_side, label).mean(0, dtype=np.float64) for label in labels])


def labels_of(pair_side):
    return sorted(set(pair_side.obs["target"]) - {CONTROL})


@pytest.mark.parametrize("kind", ["lognorm", "counts"])
def test_files_of_a_context_have_the_same_genes_labels_and_controls(read, adata, kind):
    real = read[kind]["real"]
    measured = adata.obs[adata.obs["cell_type"] == HERE]["perturbation"].value_counts().rename({"control": CONTROL})
    for name, side in read[kind].items():
        assert list(side.var_names) == list(adata.var_names), name
        assert side.obs_names.is_unique and side.X.format == "csr" and side.X.dtype == np.float32
        assert side.X.data.min() > 0 and (side.X.data == np.rint(side.X.data)).all() == (kind == "counts")
        assert side.obs["target"].value_counts().to_dict() == measured.to_dict(), name  # as many predicted as real cells
        np.testing.assert_array_equal(cells_of(side, CONTROL), cells_of(real, CONTROL))
    assert not np.array_equal(cells_of(read[kind]["model"], labels_of(real)[0]), cells_of(real, labels_of(real)[0]))


def test_real_cells_are_log1p_per_10000_of_the_full_library_or_their_counts(read, adata):
    for label in (CONTROL, *labels_of(read["counts"]["real"])):
        name = "control" if label == CONTROL else label
        cells = adata[(adata.obs["cell_type"] == HERE) & (adata.obs["perturbation"] == name)]
        counts = cells.X.toarray()
        np.testing.assert_array_equal(cells_of(read["counts"]["real"], label), counts)
        wanted = np.log1p(1e4 * counts / cells.obs["n_full"].to_numpy()[:, None])
        np.testing.assert_allclose(cells_of(read["lognorm"]["real"], label), wanted, rtol=1e-5)


def test_predicted_cells_are_the_predictors_own_and_start_from_controls_of_the_context(adata, model, tmp_path):
    one, other = Recorder(model), Recorder(model)
    files = to_cell_eval({"one": one, "a/b": other}, adata, tmp_path, n_cells=7)[HERE]
    assert files["a/b"].name == "a_b.h5ad"
    controls = set(adata.obs_names[(adata.obs["cell_type"] == HERE) & (adata.obs["perturbation"] == "control")])
    assert [list(names) for names in one.asked] == [list(names) for names in other.asked]
    assert len({tuple(names) for names in one.asked}) == len(one.asked)  # other controls for each condition
    side = anndata.read_h5ad(files["one"])
    for names, cells in zip(one.asked, one.answered, strict=True):
        assert set(names) <= controls and len(set(names)) == len(names) == 7
        np.testing.assert_array_equal(cells_of(side, cells.obs["perturbation"].iloc[0]), cells.X.toarray())
    many = to_cell_eval({"one": Recorder(model)}, adata, tmp_path, n_cells=10**6)[HERE]["one"]
    n = anndata.read_h5ad(many).obs["target"].value_counts()
    assert n.nunique() == 1 and n.iloc[0] == len(controls)  # never a cell twice


def test_genes_are_those_that_all_predict_in_the_order_of_the_screen(adata, model, tmp_path):
    backwards = Recorder(model, lambda cells: cells[:, ::-1][:, 5:40])
    files = to_cell_eval({"all": model, "some": backwards}, adata, tmp_path)[HERE]
    sides = {name: anndata.read_h5ad(path) for name, path in files.items()}
    for side in sides.values():
        assert list(side.var_names) == list(adata.var_names[::-1][5:40][::-1])
    np.testing.assert_array_equal(sides["all"].X.toarray(), sides["some"].X.toarray())


@pytest.mark.parametrize("kind", ["lognorm", "counts"])
def test_given_cells_give_the_same_pair(adata, model, read, tmp_path, kind):
    recorder = Recorder(model)
    files = to_cell_eval({"model": recorder}, adata, tmp_path, input_type=kind)[HERE]
    control = model.predict(adata[adata.obs["cell_type"] == HERE], "control", n_cells=5)
    given = anndata.concat([control, *recorder.answered])
    pairs = cell_eval_pairs(given, adata, input_type=kind)
    assert list(pairs) == [HERE]
    for side, name in zip(pairs[HERE], ("model", "real"), strict=True):
        written = anndata.read_h5ad(files[name])
        for label in [CONTROL, *labels_of(written)]:
            np.testing.assert_array_equal(cells_of(side, label), cells_of(written, label))
        assert list(side.var_names) == list(written.var_names)


def test_given_cells_of_doses_and_contexts_are_kept_apart():
    adata = simulate_screen(
        n_genes=30, n_perturbations=2, n_pairs=0, n_compounds=2, doses=(0.5, 2.0), cells_per_condition=30, n_cell_types=2, seed=2
    ).adata
    declare(adata, Setup("perturbation", "control", dose_key="dose", match_keys=("cell_type",)))
    rule = BASELINES["additive"]()
    rule.train(adata)
    asked = adata.obs[adata.obs["dose"].isin([0.5, 2.0])][["perturbation", "dose"]].drop_duplicates()
    pairs = cell_eval_pairs(rule.predict(adata, asked.reset_index(drop=True)), adata)
    assert set(pairs) == {HERE, ELSEWHERE}
    for context, (predicted, real) in pairs.items():
        assert labels_of(predicted) == labels_of(real) == sorted(f"{p} dose {d:g}" for p, d in asked.itertuples(index=False))
        for (name, dose), label in ((row, f"{row[0]} dose {row[1]:g}") for row in asked.itertuples(index=False, name=None)):
            rows = (adata.obs["perturbation"] == name) & (adata.obs["dose"] == dose) & (adata.obs["cell_type"] == context)
            assert (real.obs["target"] == label).sum() == rows.sum() > 0
    assert not np.allclose(cells_of(pairs[HERE][1], CONTROL).mean(0), cells_of(pairs[ELSEWHERE][1], CONTROL).mean(0), atol=0.1)


def spoiled(**change):
    def spoil(cells):
        if "X" in change:
            cells.X = sparse.csr_matrix(change["X"](cells.X.toarray()))
        if "counts" in change:
            cells.layers["counts"] = sparse.csr_matrix(change["counts"](cells.layers["counts"].toarray()))
        return cells[: change.get("n")]

    return spoil


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lognorm", spoiled(X=lambda x: x - 0.1), "'spoiled', 'G.*negative.*clip"),
        ("lognorm", spoiled(X=lambda x: np.where(x > 0, np.inf, x)), "not finite"),
        ("lognorm", spoiled(X=np.rint), "only integers"),
        ("lognorm", spoiled(X=lambda x: x + 12.0), "log1p of counts per 10,000"),
        ("lognorm", spoiled(n=1), "holds 1 cells"),
        ("counts", spoiled(counts=lambda x: x * 0.5), "not integers.*lognorm"),
        ("counts", spoiled(counts=lambda x: x * 1e5), "scorers take less than 1e.06.*lognorm"),
    ],
)
def test_what_scorers_refuse_or_would_not_notice_is_refused(adata, model, tmp_path, kind, change, message):
    with pytest.raises(DataError, match=message):
        to_cell_eval({"spoiled": Recorder(model, change)}, adata, tmp_path, input_type=kind)


def test_errors_say_what_to_do(adata, model, tmp_path):
    rule = BASELINES["control"]()
    rule.train(adata)
    with pytest.raises(DataError, match=r"'rule'.*layers\['counts'\].*lognorm"):
        to_cell_eval({"rule": rule}, adata, tmp_path, input_type="counts")
    with pytest.raises(ConfigError, match="lognorm"):
        to_cell_eval({"rule": rule}, adata, tmp_path, input_type="log")
    with pytest.raises(ConfigError, match="at least 2"):
        to_cell_eval({"rule": rule}, adata, tmp_path, n_cells=1)
    with pytest.raises(ConfigError, match="real"):
        to_cell_eval({"real": rule}, adata, tmp_path)
    with pytest.raises(ConfigError, match="'a/b' and 'a:b'"):
        to_cell_eval({"a/b": rule, "a:b": rule}, adata, tmp_path)
    with pytest.raises(ConfigError, match="'..' cannot"):
        to_cell_eval({"..": rule}, adata, tmp_path)
    with pytest.raises(DataError, match="'val'"):
        to_cell_eval({"rule": rule}, adata, tmp_path, subset="val")
    label = str(adata.obs["perturbation"][adata.obs["split"] == "test"].iloc[0])
    cells = rule.predict(adata, label)
    with pytest.raises(DataError, match=f"no real cell of '{label} {HERE}'"):
        cell_eval_pairs(cells, adata[(adata.obs["perturbation"] != label) | (adata.obs["cell_type"] != HERE)].copy())
    controls = np.flatnonzero((adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == HERE))
    with pytest.raises(DataError, match=f"{HERE} has 1 control cells"):
        cell_eval_pairs(cells, adata[np.setdiff1d(np.arange(adata.n_obs), controls[1:])].copy())
    with pytest.raises(DataError, match="context 'type0'"):
        cell_eval_pairs(cells, adata[adata.obs["cell_type"] != HERE].copy())
    with pytest.raises(DataError, match="no column 'cell_type'"):
        cell_eval_pairs(AnnData(cells.X, obs=cells.obs.drop(columns="cell_type"), var=cells.var), adata)
    with pytest.raises(DataError, match="nothing to score"):
        cell_eval_pairs(rule.predict(adata, "control"), adata)
    renamed = adata.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].astype(str).replace({label: CONTROL})
    declare(renamed, setup_of(adata))
    with pytest.raises(DataError, match="non-targeting.*rename"):
        to_cell_eval({"rule": rule}, renamed, tmp_path)


def test_it_is_a_public_name_of_evaluate():
    assert cf.evaluate.to_cell_eval is to_cell_eval and cf.evaluate.cell_eval_pairs is cell_eval_pairs
    assert "to_cell_eval" in dir(cf.evaluate)
    with pytest.raises(AttributeError, match="to_cell_evil"):
        cf.evaluate.to_cell_evil  # noqa: B018


def test_scanpy_ranks_the_genes_of_both_files_unchanged_and_agrees_with_our_test(read):
    """Its z has a correction for ties but none for continuity: ours is nearer to 0, by the same half rank over the error."""
    import scanpy as sc

    for side in (read["lognorm"]["real"], read["lognorm"]["model"]):
        side = side.copy()
        sc.tl.rank_genes_groups(side, "target", reference=CONTROL, method="wilcoxon", tie_correct=True)
        for label in labels_of(side)[:3]:
            theirs = sc.get.rank_genes_groups_df(side, label).set_index("names")["scores"].loc[side.var_names].to_numpy()
            ours = metrics.differential(cells_of(side, label), cells_of(side, CONTROL)).z
            short = theirs - ours
            assert np.abs(theirs).max() > 3
            assert (short * np.sign(theirs) >= -1e-6).all() and np.abs(short).max() < 0.05


# ------------------------------------------------------------------ cell-eval2


@pytest.fixture(scope="module")
def scorer():
    return pytest.importorskip("cell_eval2", reason="cell-eval2 is not installed: pip install 'counterflow[eval]'")


def score(scorer, files, name, names, *, write_de=False, **options):
    """metric -> values of the perturbations in alphabetical order, computed by cell-eval2 from the files."""
    base = scorer.EvalConfig(input_type="lognorm") if "preset" not in options else scorer.EvalConfig.from_preset(options.pop("preset"))
    config = replace(base, **({"metrics": list(names)} if names else {}), device="cpu", num_threads=1, **options)
    table = scorer.compute_metrics(str(files[name]), str(files["real"]), config=config, write_de=write_de)
    table = pd.DataFrame(table.to_dict(as_series=False))
    return {metric: rows.sort_values("perturbation").set_index("perturbation")["value"] for metric, rows in table.groupby("metric")}


@pytest.mark.parametrize("name", ["model", "additive"])
def test_cell_eval2_agrees_on_errors_and_correlations(scorer, exported, read, name):
    """`expr_*` and `delta_*`: one definition, on all genes. Their delta errors are the errors: both sides subtract the real control."""
    theirs = score(scorer, exported["lognorm"], name, ["expr_mse", "expr_mae", "delta_mse", "delta_mae", "delta_pearson"])
    predicted, real = read["lognorm"][name], read["lognorm"]["real"]
    labels = labels_of(real)
    control = means(real, [CONTROL])[0]
    pairs = list(zip(means(predicted, labels), means(real, labels), strict=True))
    ours = {
        "expr_mse": [metrics.mse(p, r) for p, r in pairs],
        "expr_mae": [metrics.mae(p, r) for p, r in pairs],
        "delta_mse": [metrics.mse(p, r) for p, r in pairs],
        "delta_mae": [metrics.mae(p, r) for p, r in pairs],
        "delta_pearson": [metrics.pearson_delta(p, r, control) for p, r in pairs],
    }
    assert set(theirs) == set(ours)
    for metric, values in ours.items():
        assert list(theirs[metric].index) == labels and np.std(values) > 1e-3
        np.testing.assert_allclose(theirs[metric], values, **AGREE, err_msg=metric)


@pytest.mark.parametrize("scope", ["none", "panel", "row"])
def test_cell_eval2_agrees_on_the_discrimination_score(scorer, exported, read, scope):
    """Given the same genes, `pds_*` is the same number, midranks for ties included; which genes are dropped differs (see the top)."""
    theirs = score(
        scorer, exported["lognorm"], "model", ["pds_l1", "pds_l2", "pds_cosine"],
        discrimination={"exclude_target_gene": scope != "none", "exclusion_scope": "panel" if scope == "none" else scope},
    )  # fmt: skip
    predicted, real = read["lognorm"]["model"], read["lognorm"]["real"]
    labels, genes = labels_of(real), real.var_names
    assert set(labels) <= set(genes)
    control = means(real, [CONTROL])[0]
    effects = means(predicted, labels) - control, means(real, labels) - control
    for distance in ("l1", "l2", "cosine"):
        function = getattr(metrics, f"pds_{distance}")
        dropped = {"none": [[]] * len(labels), "panel": [labels] * len(labels), "row": [[label] for label in labels]}[scope]
        ours = [function(*(side[:, ~genes.isin(gone)] for side in effects))[i] for i, gone in enumerate(dropped)]
        np.testing.assert_allclose(theirs[f"pds_{distance}"], ours, **AGREE, err_msg=distance)
        assert np.std(ours) > 0


def test_cell_eval2_agrees_on_differential_expression_given_the_same_tests(scorer, exported, read, tmp_path):
    """Jaccard and fold-change error without the perturbed gene, direction and area with it; nan where fewer than 10 genes are called."""
    names = ("sig_jaccard", "direction_match", "lfc_nmae", "pr_auc")
    theirs = score(
        scorer, exported["lognorm"], "model", [f"de_wilcoxon_{name}" for name in names], write_de=True, outdir=str(tmp_path),
        filter={"filter_gene_min_cpm_cell": None}, de={"backend": "scanpy"},
    )  # fmt: skip
    import polars

    tables = {}
    for side in ("pred", "real"):
        table = pd.DataFrame(polars.read_parquet(tmp_path / f"de_{side}.parquet").to_dict(as_series=False))
        tables[side] = {label: rows.set_index("feature").loc[read["lognorm"]["real"].var_names] for label, rows in table.groupby("target")}

    def differential(table):
        p, q = table["p_value"].to_numpy(), table["p_adj"].to_numpy()
        return metrics.Differential(-np.log10(q), p, q, table["log2_fold_change"].to_numpy())

    n_called = []
    for label, table in tables["real"].items():
        own = table.index != label
        kept = [differential(tables[side][label][own]) for side in ("pred", "real")]
        everything = [differential(tables[side][label]) for side in ("pred", "real")]
        ours = {
            "sig_jaccard": metrics.de_jaccard(*kept), "lfc_nmae": metrics.de_lfc_nmae(*kept),
            "direction_match": metrics.de_direction(*everything), "pr_auc": metrics.de_auprc(*everything),
        }  # fmt: skip
        for name in names:
            value = theirs[f"de_wilcoxon_{name}"].get(label, np.nan)
            np.testing.assert_allclose(value, ours[name], **AGREE, err_msg=f"{name} of {label}")
        n_called.append(everything[1].called().sum())
    assert max(n_called) >= 10


def test_cell_eval2_scores_the_counts_with_its_challenge_preset(scorer, exported, read):
    """End to end, and its discrimination score is ours on its profiles: shares in the summed counts, without the target genes."""
    theirs = score(scorer, exported["counts"], "model", None, preset="vcc2026", cache_strict=False)
    assert {"pds_cosine", "expr_mse_unbiased_capped", "de_wilcoxon_sig_jaccard", "de_wilcoxon_lfc_nmae"} <= set(theirs)
    assert all(np.isfinite(values).all() for values in theirs.values())
    labels = labels_of(read["counts"]["real"])

    def profiles(side, names):
        sums = np.array([cells_of(side, name).sum(0, dtype=np.float64) for name in names])
        return np.log1p(5e4 * sums / sums.sum(1, keepdims=True))

    predicted, real = read["counts"]["model"], read["counts"]["real"]
    control, left = profiles(real, [CONTROL]), ~real.var_names.isin(labels)
    ours = metrics.pds_cosine(*((profiles(side, labels) - control)[:, left] for side in (predicted, real)))
    np.testing.assert_allclose(theirs["pds_cosine"], ours, **AGREE)
    mse = score(scorer, exported["counts"], "model", ["expr_mse"], input_type="counts")["expr_mse"]
    ours = [metrics.mse(p, r) for p, r in zip(profiles(predicted, labels), profiles(real, labels), strict=True)]
    np.testing.assert_allclose(mse, ours, **AGREE)


def test_cell_eval2_has_to_be_told_that_combinations_are_no_genes(scorer, simulated, honest):
    """As the notes of `to_cell_eval` say: it refuses labels of which none is a gene, and scores them when told."""
    names = sorted(simulated.adata.obs["perturbation"][simulated.adata.obs["split"] == "test"].unique())
    controls = simulated.adata[simulated.adata.obs["perturbation"] == "control"][:80]
    predicted = [honest.predict(controls, pd.DataFrame({"perturbation": [name]})) for name in names]
    for name, cells in zip(names, predicted, strict=True):
        cells.obs["perturbation"] = name
    pair = cell_eval_pairs(anndata.concat(predicted), simulated.adata)[""]
    options = {"metrics": ["pds_cosine"], "input_type": "lognorm", "device": "cpu"}
    with pytest.raises(ValueError, match="target_gene_map"):
        scorer.compute_metrics(*pair, **options)
    theirs = scorer.compute_metrics(*pair, target_gene_map={"*": None}, **options)
    values = dict(zip(theirs["perturbation"], theirs["value"], strict=True))
    control = means(pair[1], [CONTROL])[0]
    ours = metrics.pds_cosine(means(pair[0], names) - control, means(pair[1], names) - control)
    np.testing.assert_allclose([values[name] for name in names], ours, **AGREE)
