"""Each rule on screens where the right answer is known."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.schema import Setup, declare
from counterflow.evaluate.baselines import BASELINES, applicable, log_expression, transport_cells
from counterflow.evaluate.baselines.cells import quantile_mapped

SETUP = {"perturbation_key": "perturbation", "control": "control", "split_key": "split"}
G = 30


def screen(effects, *, contexts=("a",), held_out=(), n=150, extra=None, seed=0, offset=1.0, names=None, **setup):
    """Poisson counts; effects: label -> log fold change (G), or (context -> ...) ; held_out: (label, context)."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(2, 20, G)
    blocks, obs = [], []
    for number, context in enumerate(contexts):
        shift = offset * np.random.default_rng(100 + number).normal(size=G) * (number > 0)
        for label, effect in {"control": np.zeros(G), **effects}.items():
            change = effect[context] if isinstance(effect, dict) else effect
            blocks.append(rng.poisson(base * np.exp(shift + change), (n, G)))
            row = {"perturbation": label, "context": context, "split": "test" if (label, context) in held_out else "train"}
            obs += [{**row, **(extra or {}).get(label, {})}] * n
    frame = pd.DataFrame(obs, index=[f"c{i}" for i in range(len(obs))])
    adata = AnnData(
        sparse.csr_matrix(np.concatenate(blocks).astype(np.float32)),
        obs=frame,
        var=pd.DataFrame(index=names or [f"G{i}" for i in range(G)]),
    )
    adata.obs["n"] = 1000.0 + 0 * np.asarray(adata.X.sum(1)).ravel()
    declare(adata, Setup(**SETUP, library_size_key="n", match_keys=("context",), **setup))
    return adata


def patterns(k, scale=0.6):
    return scale * np.random.default_rng(9).normal(size=(k, G))


def log_of(adata, label, context="a"):
    some = adata[(adata.obs["perturbation"] == label) & (adata.obs["context"] == context)]
    return log_expression(some.X.tocsr(), some.obs["n"].to_numpy())


def predicted(name, adata, label, context="a", **columns):
    rule = BASELINES[name]()
    rule.train(adata)
    controls = adata[(adata.obs["perturbation"] == "control") & (adata.obs["context"] == context)]
    out = rule.predict(controls, pd.DataFrame({"perturbation": [label], **{k: [v] for k, v in columns.items()}}))
    assert set(out.obs["perturbation"]) == {label} and out.n_obs == controls.n_obs
    cells = out.X.toarray()
    assert np.isfinite(cells).all() and (cells >= 0).all()
    return cells


def error(cells, wanted):
    return float(np.sqrt(np.square(cells.mean(0) - wanted).mean()))


@pytest.fixture(scope="module")
def pairs():
    a, b, c, d = patterns(4)
    effects = {"A": a, "B": b, "C": c, "D": d, "A+B": 0.5 * (a + b), "C+D": 0.5 * (c + d), "A+C": 0.5 * (a + c)}
    return screen(effects, held_out={("A+C", "a")})


@pytest.fixture(scope="module")
def contexts():
    a, b = patterns(2)
    near = {"a": a, "b": b, "c": a}  # c responds like a
    adata = screen({"X": near, "Y": near}, contexts=("a", "b", "c"), held_out={("X", "c"), ("Y", "c")}, offset=0.0)
    # the controls of c look like those of a, those of b do not
    b_rows = np.flatnonzero(adata.obs["context"] == "b")
    x = adata.X.toarray()
    x[b_rows, :5] *= 3
    adata.X = sparse.csr_matrix(x)
    return adata


@pytest.mark.parametrize("name", BASELINES)
def test_the_control_stays_the_control(name, pairs):
    rule = BASELINES[name]()
    rule.train(pairs)
    controls = pairs[pairs.obs["perturbation"] == "control"]
    np.testing.assert_allclose(rule.predict(controls, "control").X.toarray(), log_of(pairs, "control"), atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_reads_a_held_out_cell(name, pairs):
    changed = pairs.copy()
    x = changed.X.toarray()
    rows = (changed.obs["split"] == "test").to_numpy()
    x[rows] = x[rows][:, ::-1]
    changed.X = sparse.csr_matrix(x)
    np.testing.assert_array_equal(predicted(name, changed, "A+C"), predicted(name, pairs, "A+C"))


def test_mean_is_the_same_for_all_and_additive_is_the_sum(pairs):
    c = log_of(pairs, "control").mean(0)
    np.testing.assert_allclose(predicted("mean", pairs, "A"), predicted("mean", pairs, "C+D"))
    wanted = np.maximum(log_of(pairs, "A").mean(0) + log_of(pairs, "C").mean(0) - c, 0)
    np.testing.assert_allclose(predicted("additive", pairs, "A+C").mean(0), wanted, atol=2e-3)


def test_scaled_sums_find_the_factor_of_a_sub_additive_screen(pairs):
    wanted = log_of(pairs, "A+C").mean(0)
    rule = BASELINES["additive_scaled"]()
    rule.train(pairs)
    assert rule.factor == pytest.approx(0.5, abs=0.1)
    assert error(predicted("additive_scaled", pairs, "A+C"), wanted) < 0.5 * error(predicted("additive", pairs, "A+C"), wanted)
    assert error(predicted("matching_mean", pairs, "A+C"), wanted) < 0.5 * error(predicted("additive", pairs, "A+C"), wanted)


def test_nearest_context_borrows_from_the_right_one(contexts):
    wanted = log_of(contexts, "X", "c").mean(0)
    errors = {name: error(predicted(name, contexts, "X", "c"), wanted) for name in ("additive", "nearest_context", "similar_contexts")}
    assert errors["nearest_context"] < 0.3 * errors["additive"]
    assert errors["similar_contexts"] < 0.6 * errors["additive"]


def test_quantile_maps_and_resampling_give_the_right_spread(contexts):
    real = log_of(contexts, "X", "c")
    for name in ("quantile_map", "qmap_top2", "resample_nearest"):
        spread = np.median(np.log2(predicted(name, contexts, "X", "c").std(0) / real.std(0)))
        assert abs(spread) < 0.5, name
    mapped = quantile_mapped(log_of(contexts, "control"), log_of(contexts, "control"), real, np.random.default_rng(0))
    quantiles = [np.quantile(cells, [0.1, 0.5, 0.9], axis=0) for cells in (mapped, real)]
    assert np.abs(np.subtract(*quantiles)).mean() < 0.05


def test_quantile_map_splits_ties_at_random():
    control = np.zeros((200, 1))
    perturbed = np.repeat([[0.0], [2.0]], 100, axis=0)
    mapped = quantile_mapped(control, control, perturbed, np.random.default_rng(0))
    assert (mapped > 1).mean() == pytest.approx(0.5, abs=0.1)


def test_count_transport_reaches_the_mean_and_keeps_counts(pairs):
    controls = pairs[pairs.obs["perturbation"] == "control"]
    effect = log_of(pairs, "A").mean(0) - log_of(pairs, "control").mean(0)
    n = controls.obs["n"].to_numpy()
    cells = transport_cells(controls.X.tocsr(), n, effect, tuple(controls.obs_names))
    assert error(cells, log_of(pairs, "A").mean(0)) < 0.25 * np.sqrt(np.square(effect).mean())
    counts = np.expm1(cells) * n[:, None] / 1e4
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-2)


def test_count_transport_passes_where_moved_cells_are_found_out(pairs):
    from counterflow.evaluate.metrics import c2st_gene

    real = log_of(pairs, "A")
    assert c2st_gene(predicted("additive+ct", pairs, "A"), real) < c2st_gene(predicted("additive", pairs, "A"), real) - 0.1


def test_unseen_genes_are_known_by_their_neighbours():
    """Perturbations in two families with opposite responses; each gene responds like its family."""
    family = np.repeat([1.0, -1.0], G // 2)
    rng = np.random.default_rng(3)
    genes = [f"G{i}" for i in range(G)]
    members = [0, 1, 2, 3, 15, 16, 17, 18]
    effects = {genes[i]: family[i] * 0.6 * family + 0.1 * rng.normal(size=G) for i in members}
    adata = screen(effects, held_out={(genes[3], "a"), (genes[18], "a")})
    assert {"bilinear", "knn", "ridge"} <= set(applicable(adata))
    for name in ("bilinear", "knn", "ridge"):
        for gene in (genes[3], genes[18]):
            real = log_of(adata, gene).mean(0)
            assert error(predicted(name, adata, gene), real) < 0.6 * error(predicted("mean", adata, gene), real), (name, gene)


def test_interpolation_mixes_responders_and_others():
    (effect,) = patterns(1, 1.0)
    extra = {"control": {"time": 0.0}, "X": {"time": 4.0}}
    adata = screen({"X": effect}, extra=extra)
    late = adata[adata.obs["perturbation"] == "X"].copy()
    early = late.copy()
    early.obs["time"], early.obs["split"] = 1.0, "test"
    early.obs_names = [f"e{i}" for i in range(early.n_obs)]
    import anndata

    both = anndata.concat([adata, early])
    declare(both, Setup(**SETUP, library_size_key="n", match_keys=("context",), time_key="time"))
    assert "interpolate" in applicable(both) and "nearest_context" not in applicable(both)
    out = predicted("interpolate", both, "X", time=1.0)
    c, x = log_of(both, "control").mean(0), log_of(adata, "X").mean(0)
    share = (out.mean(0) - c) @ (x - c) / np.square(x - c).sum()
    assert share == pytest.approx(0.25, abs=0.1)


def test_what_applies_follows_from_the_split(pairs, contexts):
    for_pairs, for_contexts = applicable(pairs), applicable(contexts)
    assert {"control", "mean", "additive", "mean+ct", "additive+ct"} <= set(for_pairs) & set(for_contexts)
    assert {"additive_scaled", "matching_mean", "ridge", "resample_nearest"} <= set(for_pairs)
    assert not {"nearest_context", "quantile_map", "bilinear", "interpolate"} & set(for_pairs)
    assert {"nearest_context", "similar_contexts", "quantile_map", "qmap_top2"} <= set(for_contexts)
    assert not {"additive_scaled", "matching_mean", "bilinear", "interpolate"} & set(for_contexts)
