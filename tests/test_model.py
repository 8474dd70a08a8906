"""The face: what a user may rely on, whatever the backbone and the space."""

import hashlib
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from counterflow import CheckpointError, ConfigError, CounterFlow, DataError
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.recentring import Trust
from counterflow.requests import trusted
from counterflow.types import ConditionSpec

SETUP = {"perturbation_key": "perturbation", "control": "control"}
TINY = {"backbone_kwargs": {"size": "XS"}, "encoder_kwargs": {"width": 16}}


def fit(adata, *, max_steps=30, setup=SETUP, **kwargs):
    CounterFlow.setup_anndata(adata, **setup)
    if kwargs.get("space", "pca") == "pca":
        kwargs = {"space_kwargs": {"n_components": 8}} | kwargs
    model = CounterFlow(adata, **TINY | kwargs)
    model.train(max_steps=max_steps, batch_size=64, set_size=16, progress=False)
    return model


def same(a, b):
    """Bit for bit, cell by cell, in the order of `a`."""
    b = b[a.obs_names]
    return (
        (a.X != b.X).nnz == 0 and (a.layers["counts"] != b.layers["counts"]).nnz == 0 and np.array_equal(a.layers["mean"], b.layers["mean"])
    )


@pytest.fixture(scope="module")
def data(tiny_screen):
    return tiny_screen.adata.copy()


@pytest.fixture(scope="module")
def model(data):
    """A model whose every weight is far from its start."""
    model = fit(data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.normal_(0, 0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def single(tiny_screen):
    return tiny_screen.conditions[0]


@pytest.fixture(scope="module")
def pair(tiny_screen):
    return next(name for name in tiny_screen.conditions if "+" in name)


@pytest.fixture(scope="module")
def controls(data):
    return data[data.obs["perturbation"] == "control"].copy()


# ------------------------------------------------------------------------------------------------------- a cell is a cell


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize(("source", "space"), [("control", "pca"), ("noise", "raw")])
def test_the_company_and_order_of_cells_do_not_change_them(data, controls, single, randomise, solver, source, space):
    model = fit(data, max_steps=1, source=source, space=space)
    randomise(model.module)
    everyone = model.predict(controls, single, n_steps=3, solver=solver)
    for rows in (slice(0, 1), slice(5, 30), np.random.default_rng(0).permutation(len(controls)), np.arange(len(controls))[::-1][:77]):
        some = model.predict(controls[rows], single, n_steps=3, solver=solver)
        assert same(some, everyone)
        assert list(some.obs["source_cell"]) == list(controls.obs_names[rows])


def test_a_cell_does_not_depend_on_which_conditions_are_asked_for(model, controls, single, pair):
    both = model.predict(controls, [pair, single])
    assert same(model.predict(controls, single), both)
    assert list(both.obs["perturbation"]) == [pair] * len(controls) + [single] * len(controls)


def test_adaptive_steps_are_shared_so_company_counts_up_to_the_tolerance(data, controls, single):
    model = fit(data, max_steps=100)
    everyone, some = (model.predict(cells, single, solver="dopri5") for cells in (controls, controls[3:9]))
    np.testing.assert_allclose(some.layers["mean"], everyone[some.obs_names].layers["mean"], rtol=5e-3)


def test_cells_of_one_name_keep_their_noise_when_some_are_chosen(model, controls, single):
    twins = controls.copy()
    twins.obs_names = ["twin"] * twins.n_obs
    twins.obs["number"] = range(twins.n_obs)
    adata = model.adata.copy()
    CounterFlow.setup_anndata(adata, **SETUP, covariate_keys=["cell_type"])
    chooser = CounterFlow(adata, **TINY, space_kwargs={"n_components": 8})
    chooser.train(max_steps=1, batch_size=32, set_size=16, progress=False)
    everyone = chooser.predict(twins, single)
    some = chooser.predict(twins, pd.DataFrame({"perturbation": [single], "cell_type": ["type1"]}))
    kept = everyone[everyone.obs["cell_type"] == "type1"]
    assert list(kept.obs["number"]) == list(some.obs["number"]) and set(some.obs["source_cell"]) == {"twin"}
    assert everyone.obs_names.is_unique
    assert (kept.layers["counts"] != some.layers["counts"]).nnz == 0


def test_more_cells_than_a_block_of_the_solver(model, controls, single):
    many = anndata.concat([controls] * 3, index_unique="-")
    assert len(many) > 256 < 3 * len(controls)
    assert same(model.predict(many[250:260], single), model.predict(many, single))


def test_the_seed_decides(model, controls, single):
    def cells(seed):
        return model.predict(controls, single, seed=seed).layers["counts"].toarray()

    assert np.array_equal(cells(3), cells(3))
    assert not np.array_equal(cells(3), cells(4))

    def new(seed):
        return model.generate(single, 20, seed=seed).layers["counts"].toarray()

    assert np.array_equal(new(3), new(3))
    assert not np.array_equal(new(3), new(4))


def test_the_same_fit_twice(data, controls, single):
    once, again = (fit(data.copy(), max_steps=10).predict(controls, single) for _ in range(2))
    assert same(once, again)
    assert not same(fit(data.copy(), max_steps=10, seed=1).predict(controls, single), once)


def test_nothing_random_leaks_out(data, controls, single):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    fit(data.copy(), max_steps=5).predict(controls, single)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]


# ------------------------------------------------------------------------------------------------ the caller's data are his


def fingerprint(adata):
    parts = [adata.X.data.tobytes(), adata.X.indices.tobytes(), adata.X.indptr.tobytes(), adata.obs.to_csv().encode()]
    parts += [adata.var.to_csv().encode(), pickle.dumps(dict(adata.uns)), repr((list(adata.layers), list(adata.obsm))).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_predict_never_writes_into_the_callers_anndata(model, data, controls, single):
    before = fingerprint(data), fingerprint(controls)
    out = model.predict(controls, single)
    model.predict(conditions=single)
    model.get_latent_representation()
    out.X.data[:] = -1
    out.obs["cell_type"] = "none"
    out.var["new"] = 1
    out.uns["new"] = 1
    assert (fingerprint(data), fingerprint(controls)) == before


def test_setup_writes_one_entry_and_training_none(tiny_screen):
    adata = tiny_screen.adata.copy()
    before = fingerprint(adata)
    fit(adata, max_steps=2)
    assert adata.uns.pop("_counterflow")["control"] == "control"
    assert fingerprint(adata) == before


def test_formats_of_the_matrix_are_one(data, model, controls, single):
    expected = model.predict(controls, single)
    for convert in (lambda x: x.toarray(), sparse.csc_matrix, lambda x: x.astype(np.float64), lambda x: x.astype(np.int32)):
        other = controls.copy()
        other.X = convert(controls.X)
        assert same(model.predict(other, single), expected)


def test_genes_are_found_by_name(model, controls, single):
    order = np.random.default_rng(0).permutation(controls.n_vars)
    shuffled = controls[:, order].copy()
    extra = anndata.concat(
        [shuffled, anndata.AnnData(np.ones((len(shuffled), 1)), var=pd.DataFrame(index=["other"]), obs=shuffled.obs)], axis=1
    )
    extra.obs = shuffled.obs
    assert same(model.predict(shuffled, single), model.predict(controls, single))
    assert list(model.predict(extra, single).var_names) == list(controls.var_names)
    with pytest.raises(DataError, match="not in var_names"):
        model.predict(controls[:, 1:], single)


# ------------------------------------------------------------------------------------------------------ what comes back


def test_what_a_prediction_carries(model, controls, data, pair):
    out = model.predict(controls, pair, seed=7)
    assert out.shape == controls.shape and list(out.var_names) == list(controls.var_names)
    assert (out.obs["perturbation"] == pair).all() and (out.obs["condition"] == pair).all()
    assert (out.obs["cell_type"].to_numpy() == controls.obs["cell_type"].to_numpy()).all()
    assert set(out.obs["support"]) == {"seen"}
    made = out.uns["counterflow"]
    assert made["sampling"]["seed"] == 7 and made["sampling"]["solver"] == "midpoint"
    assert made["model"]["backbone"] == "mlp" and made["control"] == "control" and made["conditions"] == [pair]
    library = controls.obs["n_counts"].to_numpy()
    counts = out.layers["counts"].toarray()
    expected = np.log1p(counts / library[:, None] * 1e4)
    np.testing.assert_allclose(out.X.toarray(), expected, rtol=1e-5)  # the control cell's own library size


def test_answers_survive_a_file(model, controls, pair, single, tmp_path):
    for answer in (model.predict(controls, [single, pair]), model.generate([single, pair], 10)):
        answer.write_h5ad(tmp_path / "cells.h5ad")
        again = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert same(answer, again)
        assert again.uns["counterflow"]["sampling"]["n_steps"] == 5
        assert list(again.obs["support"]) == list(answer.obs["support"])


def test_n_cells_chooses_and_repeats(model, controls, single):
    few, all_of_them = model.predict(controls, single, n_cells=10), model.predict(controls, single)
    assert len(few) == 10 and same(few, all_of_them)
    many = model.predict(controls, single, n_cells=300)
    assert len(many) == 300 and many.obs_names.is_unique
    assert many.obs["source_cell"].value_counts().max() == 3  # 120 controls
    twins = many[many.obs["source_cell"] == many.obs["source_cell"].iloc[0]].layers["counts"].toarray()
    assert (twins[0] != twins[1]).any()  # the same cell under another draw of the noise


def test_numbers_that_cannot_be_are_refused(model, declared, single):
    for ask in (model.predict, model.generate):
        for wrong in ({"n_cells": 0}, {"n_cells": 5, "seed": -1}):
            with pytest.raises(ConfigError, match="n_cells=0" if "seed" not in wrong else "seed=-1"):
                ask(conditions=single, **wrong)
    with pytest.raises(ConfigError, match="seed=-1"):
        CounterFlow(declared, seed=-1)
    with pytest.raises(ConfigError, match="n_components=31 .* at most 30"):
        CounterFlow(declared, space_kwargs={"n_components": 31}).train(max_steps=1, progress=False)


def test_all_training_conditions_by_default(model, tiny_screen):
    cells = model.predict(n_cells=3)
    assert set(cells.obs["condition"]) == set(tiny_screen.conditions)
    assert len(cells) == 3 * len(tiny_screen.conditions)


def test_generate_makes_new_cells(model, data, single):
    cells = model.generate(single, 40, covariates=None)
    assert len(cells) == 40 and cells.obs_names.is_unique and "source_cell" not in cells.obs
    assert not (set(cells.obs_names) & set(data.obs_names))
    with pytest.raises(ConfigError, match="covariates has 'cell_typ'"):
        model.generate(single, 5, covariates={"cell_typ": "type0"})


def test_generate_without_kept_controls_asks_for_them(data, controls, single, tmp_path):
    model = fit(data, max_steps=2, keep_controls=0)
    with pytest.raises(ConfigError, match="keep_controls=0"):
        model.generate(single, 5)
    model.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model")
    with pytest.raises(ConfigError, match="keep_controls=0"):
        loaded.predict(conditions=single)
    assert same(loaded.predict(controls, single), model.predict(controls, single))


def test_representations(model, data, tiny_screen):
    assert model.get_latent_representation().shape == (data.n_obs, 8)
    np.testing.assert_array_equal(model.get_latent_representation(data[:7]), model.get_latent_representation()[:7])
    table = model.get_perturbation_embedding()
    assert list(table.index) == sorted(tiny_screen.perturbations) and np.linalg.matrix_rank(table) == len(table)


# -------------------------------------------------------------------------------------------------- conditions and support


@pytest.fixture(scope="module")
def contexts(tiny_screen):
    """A screen in which one single, one pair and the perturbed cells of one cell type are held out; genes as features."""
    adata = tiny_screen.adata.copy()
    genes = list(tiny_screen.perturbations)
    pair = next(name for name in tiny_screen.conditions if "+" in name)
    gone = next(gene for gene in genes if gene not in pair.split("+"))
    label = adata.obs["perturbation"].astype(str)
    held_out = (label == pair) | label.map(lambda name: gone in name.split("+"))
    held_out |= (adata.obs["cell_type"] == "type1") & (label != "control")
    adata.obs["split"] = np.where(held_out, "test", "train")
    setup = SETUP | {"covariate_keys": ["cell_type"], "match_keys": ["cell_type"], "split_key": "split"}
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 5)), index=genes)
    single = next(gene for gene in genes if gene != gone)
    return fit(adata, setup=setup, perturbation_features=features), single, pair, gone


def test_support_labels(contexts):
    model, single, pair, gone = contexts
    cells = model.predict(conditions=[single, pair, gone, "control"])
    support = cells.obs.groupby(["perturbation", "cell_type"])["support"].agg(set)
    assert support[single, "type0"] == {"seen"}
    assert support[pair, "type0"] == {"components-seen"}
    assert support[gone, "type0"] == {"features-only"}
    assert support[f"{single}", "type1"] == support[gone, "type1"] == {"unseen-context"}
    assert support["control", "type0"] == {"seen"}


def test_unseen_levels_are_read_as_null(contexts, randomise):
    """A cell type that met no perturbation, and one that nobody ever saw, are the same to the network."""
    model, single, _, _ = contexts
    known, unmet, unheard = (
        model.vocabulary.ids([ConditionSpec((single,), (1.0,))], {"cell_type": [level]}).covariates for level in ("type0", "type1", "alien")
    )
    assert torch.equal(unmet, unheard) and not torch.equal(known, unmet)


def test_held_out_cells_are_not_looked_at(contexts, tiny_screen):
    """Other counts in the held-out cells give the same model."""
    model, single, pair, gone = contexts
    adata = model.adata.copy()
    counts = adata.X.toarray()
    counts[adata.obs["split"] == "test"] = 17
    adata.X = sparse.csr_matrix(counts)
    setup = model.setup.to_dict()
    genes = list(tiny_screen.perturbations)
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 5)), index=genes)
    again = fit(adata, setup=setup, perturbation_features=features)
    for name, weight in model.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name])
    assert same(model.predict(conditions=[single, pair, gone]), again.predict(conditions=[single, pair, gone]))


def test_an_unknown_perturbation_names_its_near_matches(model, controls, single):
    misspelt = single[:-1] + "X"
    with pytest.raises(DataError, match=f"{misspelt}.*did you mean '"):
        model.predict(controls, misspelt)
    with pytest.raises(DataError, match="neither seen in training nor have features"):
        model.generate(f"{single}+{misspelt}", 5)
    cells = model.predict(controls, misspelt, on_unknown="mean")
    assert set(cells.obs["support"]) == {"unknown"}
    with pytest.raises(ConfigError, match="on_unknown='mena'"):
        model.predict(controls, misspelt, on_unknown="mena")


def test_a_combination_is_a_set(model, controls, pair):
    forth, back = pair, "+".join(reversed(pair.split("+")))
    a, b = model.predict(controls, forth), model.predict(controls, f" {back} ")
    assert np.array_equal(a.layers["mean"], b.layers["mean"]) and set(b.obs["perturbation"]) == {forth}


def test_three_at_once_after_pairs(model, controls, tiny_screen):
    three = "+".join(sorted(tiny_screen.perturbations)[:3])
    cells = model.predict(controls, three)
    assert set(cells.obs["support"]) == {"components-seen"} and set(cells.obs["perturbation"]) == {three}


def test_an_unknown_perturbation_stays_unknown_in_an_unseen_context(contexts):
    model, *_ = contexts
    cells = model.predict(conditions="alien", on_unknown="mean")
    assert set(cells.obs["cell_type"]) == {"type0", "type1"} and set(cells.obs["support"]) == {"unknown"}


def test_controls_are_chosen_by_columns_of_numbers_too(data, single):
    adata = data.copy()
    adata.obs["lane"] = (adata.obs["batch"] == "batch1").astype(int)
    adata.obs["age"] = np.where(adata.obs["cell_type"] == "type0", 0.5, 1.5)
    model = fit(adata, setup=SETUP | {"covariate_keys": ["lane", "age"]}, max_steps=1)
    cells = model.predict(conditions=pd.DataFrame({"perturbation": [single], "lane": [1], "age": [0.5]}))
    assert set(cells.obs["lane"]) == {1} and set(cells.obs["age"]) == {0.5}


def test_a_table_of_conditions_restricts_the_controls(contexts):
    model, single, _, _ = contexts
    cells = model.predict(conditions=pd.DataFrame({"perturbation": [single, single], "cell_type": ["type0", "type1"]}), n_cells=5)
    assert list(cells.obs["cell_type"]) == ["type0"] * 5 + ["type1"] * 5
    generated = model.generate(single, 6, covariates={"cell_type": "type1"})
    assert set(generated.obs["cell_type"]) == {"type1"}
    with pytest.raises(DataError, match="no control cell has cell_type = 'type9'"):
        model.predict(conditions=pd.DataFrame({"perturbation": [single], "cell_type": ["type9"]}))
    with pytest.raises(ConfigError, match="did you mean 'perturbation'"):
        model.predict(conditions=pd.DataFrame({"perturbatio": [single]}))
    with pytest.raises(ConfigError, match="conditions is empty"):
        model.predict(conditions=[])


def test_dose_and_time():
    screen = simulate_screen(
        **SMALL | {"n_genes": 30, "n_perturbations": 3, "n_pairs": 1, "n_compounds": 2}, doses=(0.1, 1.0), times=(1.0, 4.0)
    )
    setup = SETUP | {"dose_key": "dose", "time_key": "time"}
    model = fit(screen.adata, setup=setup, max_steps=60)
    table = pd.DataFrame({"perturbation": ["C00"] * 4, "dose": [0.1, 1.0, 0.3, 1.0], "time": [1.0, 4.0, 2.0, 0.0]})
    cells = model.predict(conditions=table, n_cells=40)
    effect = cells.to_df().groupby(cells.obs["condition"].to_numpy(), sort=False).mean()
    assert list(effect.index) == ["C00 dose 0.1 time 1", "C00 dose 1 time 4", "C00 dose 0.3 time 2", "C00 dose 1 time 0"]
    assert list(cells.obs.groupby("condition", sort=False, observed=True)["support"].first()) == [
        "seen", "seen", "components-seen", "components-seen",
    ]  # fmt: skip
    assert cells.obs["dose"].astype(float).iloc[0] == 0.1 and cells.obs["time"].iloc[-1] == 0.0
    with pytest.raises(ConfigError, match="needs 'dose'"):
        model.predict(conditions="C00")
    control = model.predict(conditions=pd.DataFrame({"perturbation": ["control"], "dose": [0.0], "time": [0.0]}), n_cells=40).to_df().mean()
    assert ((effect.loc["C00 dose 1 time 4"] - control) ** 2).sum() > 3 * ((effect.loc["C00 dose 1 time 0"] - control) ** 2).sum()


def test_doses_of_singles_and_pairs_come_back_in_one_file(data, single, pair, tmp_path):
    adata = data.copy()
    adata.obs["condition"] = adata.obs["perturbation"].astype(str)  # the screen's own column of this name
    adata.obs["dose"] = adata.obs["condition"].map(lambda name: "0" if name == "control" else "1+2" if "+" in name else "1")
    model = fit(adata, setup=SETUP | {"perturbation_key": "condition", "dose_key": "dose"}, max_steps=1)
    cells = model.predict(conditions=pd.DataFrame({"condition": [single, pair], "dose": ["1", "1+2"]}), n_cells=2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad").obs
    assert list(back["condition"]) == [single, single, pair, pair] and list(back["dose"]) == ["1.0", "1.0", "1+2", "1+2"]


def test_times_that_cannot_be_are_refused(data, single):
    adata = data.copy()
    adata.obs["time"] = np.where(adata.obs["perturbation"] == "control", 0.0, 6.0)
    model = fit(adata, setup=SETUP | {"time_key": "time"}, max_steps=1)
    for time in ("six", -1.0, np.nan, np.inf):
        with pytest.raises(DataError, match=f"time '{time}'"):
            model.predict(conditions=pd.DataFrame({"perturbation": [single], "time": [time]}))


# ------------------------------------------------------------------------------------------------- sources and guidance


def test_noise_source_returns_the_control_cell_when_nothing_changes(data, controls, single):
    """Inversion under what the cell is, then regeneration under the same, is the identity; under a perturbation it is not."""
    model = fit(data, source="noise", space="pca", max_steps=60)

    def changed(condition):
        mean = model.predict(controls, condition, solver="dopri5").layers["mean"]
        return np.abs(mean - controls.X.toarray()).sum() / controls.X.sum()

    assert changed("control") < 1e-3
    assert changed(single) > 5e-3


def test_genot_reads_the_paired_control(data, controls, single):
    model = fit(data, source="noise", coupling="genot", max_steps=60)
    cells = model.predict(controls, single)
    assert np.isfinite(cells.X.data).all()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.normal_(0, 0.2, generator=generator)
    state = torch.randn(6, 8, generator=generator)
    ids = model.vocabulary.ids([ConditionSpec((single,), (1.0,))] * 6, {})
    one = model.module.velocity(ids, origin=state)(state, torch.tensor(0.5))
    other = model.module.velocity(ids, origin=state + 1)(state, torch.tensor(0.5))
    assert (one - other).abs().max() > 1e-4


def test_options_that_exclude_each_other_are_refused(declared):
    for kwargs, message in [
        ({"source": "noise", "coupling": "ot"}, "source='noise' use"),
        ({"source": "control", "coupling": "genot"}, "starts from noise"),
        ({"source": "noisy"}, "did you mean 'noise'"),
        ({"coupling": "opt"}, "did you mean 'ot'"),
        ({"time": "unifrm"}, "did you mean 'uniform'"),
        ({"space": "pcs"}, "did you mean 'pca'"),
        ({"backbone": "mpl"}, "did you mean 'mlp'"),
        ({"backbone_kwargs": {"dept": 2}}, "did you mean 'depth'"),
        ({"space_kwargs": {"n_component": 2}}, "did you mean 'n_components'"),
        ({"encoder_kwargs": {"widht": 2}}, "did you mean 'width'"),
        ({"perturbation_features": "coexpresion"}, "did you mean 'coexpression'"),
        ({"conditioning": "crosss"}, "did you mean 'cross'"),
        ({"anchor": "aditive"}, "anchor="),
    ]:
        with pytest.raises(ConfigError, match=message):
            CounterFlow(declared, **kwargs)


def test_guidance_scales_the_effect_of_the_network(data, controls, single):
    model = fit(data, anchor="none", max_steps=300)

    def effect(w, **kwargs):
        cells = model.predict(controls, single, guidance=w, **kwargs)
        return cells.layers["mean"].mean(0) - model.predict(controls, "control").layers["mean"].mean(0)

    plain = effect(1.0)
    share = [float(effect(w) @ plain / (plain @ plain)) for w in (0.0, 0.5, 2.0)]
    assert abs(share[0]) < 0.05 and 0.3 < share[1] < 0.7 and share[2] > 1.5
    np.testing.assert_allclose(effect(2.0, guidance_interval=(0.4, 0.4)), plain, atol=0.5 * np.abs(plain).max())
    assert not np.allclose(effect(2.0, guidance_kind="classifier_free"), effect(2.0))
    with pytest.raises(ConfigError, match="guidance_kind"):
        model.predict(controls, single, guidance=2.0, guidance_kind="contrst")
    with pytest.raises(ConfigError, match="guidance_kind"):
        model.predict(controls, single, guidance_kind="contrst")  # also where it would not be used
    with pytest.raises(ConfigError, match="did you mean 'euler'"):
        model.predict(controls, single, solver="eulr")
    with pytest.raises(ConfigError, match="n_steps=0"):
        model.predict(controls, single, n_steps=0)


# ------------------------------------------------------------------------------------------------------------- the matrix


def test_top_genes_and_the_perturbed_ones(data, tiny_screen, single, tmp_path):
    model = fit(data.copy(), n_top_genes=10)
    cells = model.predict(conditions=single, n_cells=5)
    assert set(tiny_screen.perturbations) <= set(cells.var_names) and 10 <= cells.n_vars < 30
    assert list(cells.var_names) == [gene for gene in data.var_names if gene in set(cells.var_names)]
    model.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model")
    assert same(loaded.predict(data, single, n_cells=5), model.predict(data, single, n_cells=5))


def test_log1p_input_gives_the_model_that_counts_give(data, single):
    logged = data.copy()
    scale = 1e4 / np.asarray(data.X.sum(1))
    logged.X = sparse.csr_matrix(data.X.multiply(scale)).astype(np.float32).log1p()
    setup = SETUP | {"library_size_key": "n_counts"}
    of_counts, of_logs = fit(data.copy(), setup=setup), fit(logged, setup=setup | {"matrix_state": "log1p"})
    for name, weight in of_counts.module.state_dict().items():
        assert torch.equal(of_logs.module.state_dict()[name], weight)
    assert same(of_counts.predict(conditions=single), of_logs.predict(conditions=single))


def test_library_size_of_all_genes(data, single):
    """A file with a subset of the genes, whose library sizes count them all: expression is relative to these."""
    subset = data[:, :20].copy()
    subset.obs["n_all"] = np.asarray(data.X.sum(1)).ravel()
    model = fit(subset, setup=SETUP | {"library_size_key": "n_all"})
    cells = model.predict(conditions="control")
    library = subset.obs["n_all"][cells.obs["source_cell"]].to_numpy()
    np.testing.assert_allclose(np.expm1(cells.X.toarray()), cells.layers["counts"].toarray() / library[:, None] * 1e4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- training


def test_history_and_state(data):
    CounterFlow.setup_anndata(data, **SETUP)
    model = CounterFlow(data, **TINY)
    assert not model.is_trained and "not trained" in repr(model)
    with pytest.raises(ConfigError, match="not trained: call model.train"):
        model.predict(conditions="control")
    with pytest.raises(ConfigError, match="not trained"):
        model.save("never")
    model.train(max_epochs=2, batch_size=64, set_size=16, progress=False)
    assert model.is_trained and "; trained)" in repr(model)
    assert model.history[-1]["step"] <= 2 * (data.n_obs // 64 + 1)
    assert all(np.isfinite(row["train_loss"]) for row in model.history)


def test_the_loss_falls(data):
    model = fit(data.copy(), anchor="none", max_steps=150)
    losses = [row["train_loss"] for row in model.history]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_an_undeclared_anndata_is_refused(tiny_screen):
    with pytest.raises(DataError, match="setup_anndata"):
        CounterFlow(tiny_screen.adata.copy())


def test_early_stopping_and_a_run_directory(data, tmp_path):
    adata = data.copy()
    adata.obs["split"] = "train"
    held = adata.obs["perturbation"] == adata.obs["perturbation"].cat.categories[-1]
    adata.obs.loc[held, "split"] = "val"
    CounterFlow.setup_anndata(adata, **SETUP, split_key="split")
    model = CounterFlow(adata, **TINY)
    model.train(max_steps=40, batch_size=32, set_size=16, early_stopping=True, run_dir=tmp_path / "run", progress=False)
    assert any("val_loss" in row for row in model.history)
    assert (tmp_path / "run" / "metrics.csv").is_file() and (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_early_stopping_needs_something_to_watch(declared):
    with pytest.raises(ConfigError, match="early_stopping=True needs"):
        CounterFlow(declared, **TINY).train(max_steps=2, early_stopping=True, progress=False)


@pytest.mark.parametrize("controls_are", ["val", "test"])
def test_a_context_held_out_with_its_controls_stops_no_fit(data, controls_are):
    adata = data.copy()
    away = adata.obs["batch"] == "batch1"
    adata.obs["split"] = np.where(away, np.where(adata.obs["perturbation"] == "control", controls_are, "val"), "train")
    model = fit(adata, setup=SETUP | {"match_keys": ["batch"], "split_key": "split"}, max_steps=20)
    assert any("val_loss" in row for row in model.history) == (controls_are == "val")


class PowerCut(Exception):
    pass


class CutAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise PowerCut


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(data, single, controls, tmp_path):
    def train(model, **kwargs):
        model.train(batch_size=32, set_size=16, progress=False, **kwargs)
        return model.predict(controls, single)

    def new():
        CounterFlow.setup_anndata(data, **SETUP)
        return CounterFlow(data, **TINY)

    straight = train(new(), max_steps=40, run_dir=tmp_path / "straight")

    with pytest.raises(PowerCut):
        train(new(), max_steps=40, run_dir=tmp_path / "cut", callbacks=[CutAt(13)])
    resumed = train(new(), max_steps=40, run_dir=tmp_path / "cut", resume_from=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert same(resumed, straight)
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        new().train(max_steps=2, resume_from=tmp_path / "nowhere.ckpt", progress=False)


class Affine(torch.nn.Module):
    """The smallest backbone of one's own."""

    def __init__(self, n_features):
        super().__init__()
        self.linear = torch.nn.Linear(n_features, n_features)

    def forward(self, x, t, condition):
        return self.linear(x) + condition.pooled.mean(1, keepdim=True)


def test_a_handed_in_network_is_copied_for_every_fit(declared):
    network = Affine(5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = CounterFlow(declared, backbone=network, space_kwargs={"n_components": 5})
    model.train(max_steps=3, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not torch.equal(model.module.backbone.linear.weight, before["linear.weight"])
    again = CounterFlow(declared, backbone=network, space_kwargs={"n_components": 5})
    again.train(max_steps=3, progress=False)
    assert torch.equal(again.module.backbone.linear.weight, model.module.backbone.linear.weight)
    assert again.trust == model.trust


def test_a_condition_measured_in_another_context_only_is_not_called_seen(tiny_screen):
    adata = tiny_screen.adata.copy()
    types = sorted(adata.obs["cell_type"].unique())
    name = tiny_screen.conditions[0]
    adata = adata[~((adata.obs["perturbation"] == name) & (adata.obs["cell_type"] == types[0]))].copy()
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    model = CounterFlow(adata, backbone_kwargs={"size": "XS"})
    model.train(max_steps=2, progress=False)
    cells = model.predict(conditions=name)
    support = cells.obs.groupby("cell_type", observed=True)["support"].unique().map(list).to_dict()
    assert support[types[0]] == ["components-seen"] and all(support[other] == ["seen"] for other in types[1:])
    spec = ConditionSpec((name,), (1.0,), 0.0)
    trust = trusted(spec, model.vocabulary, {"seen": Trust(0.0, 0.5), "context": Trust(0.25, 1.0)})
    assert trust["seen"] == Trust(0.0, 0.5) and trust["components-seen"] == trust["unseen-context"] == Trust(0.25, 1.0)
