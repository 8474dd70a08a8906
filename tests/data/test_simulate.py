from dataclasses import replace

import anndata
import numpy as np
import pytest

from counterflow.data.cascade import expected_log1p
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(**SMALL, seed=3)


@pytest.fixture(scope="module")
def additive():
    return simulate_screen(**SMALL, interaction=0.0, seed=3)


@pytest.fixture(scope="module")
def with_dose_and_time():
    return simulate_screen(**SMALL, doses=(0.1, 1.0, 10.0), times=(1.0, 3.0, 6.0), seed=3)


def pairs_of(screen):
    return [condition for condition in screen.conditions if "+" in condition]


def log1p_normalise(adata):
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def test_layout(screen):
    adata = screen.adata
    assert adata.shape == (120 + 12 * 25, 60)
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    assert (adata.X.data > 0).all() and (adata.X.data == np.round(adata.X.data)).all()
    assert adata.obs_names.is_unique and adata.var_names[0] == "G000"
    assert list(adata.obs) == ["perturbation", "cell_type", "batch", "n_counts"]
    np.testing.assert_array_equal(adata.obs["n_counts"], adata.X.sum(axis=1).A1)
    assert (adata.obs["perturbation"] == "control").sum() == 120
    assert set(screen.condition_table["n_cells"]) == {25, 120}
    singles = [condition for condition in screen.conditions if "+" not in condition]
    assert len(singles) == 6 and set(singles) <= set(adata.var_names)
    assert len(pairs_of(screen)) == 6
    assert all(a < b and {a, b} <= set(singles) for a, b in (pair.split("+") for pair in pairs_of(screen)))


def test_order_of_cells_carries_no_information(screen):
    first_half = screen.adata.obs["perturbation"].iloc[: screen.adata.n_obs // 2]
    assert (first_half == "control").sum() == pytest.approx(60, abs=20)


def test_the_arguments_reproduce_the_screen(screen, tmp_path):
    screen.adata.write_h5ad(tmp_path / "screen.h5ad")
    stored = anndata.read_h5ad(tmp_path / "screen.h5ad")
    again = simulate_screen(**stored.uns["simulation"])
    assert (again.adata.X != screen.adata.X).nnz == 0
    assert again.adata.obs.equals(screen.adata.obs)
    other = simulate_screen(**{**stored.uns["simulation"], "seed": 4})
    assert (other.adata.X != screen.adata.X).nnz > 0


def test_interaction_changes_neither_cascade_nor_cells(screen, additive):
    np.testing.assert_array_equal(screen.biology.program_to_gene, additive.biology.program_to_gene)
    np.testing.assert_array_equal(screen.cells.library, additive.cells.library)
    assert screen.adata.obs["perturbation"].equals(additive.adata.obs["perturbation"])


def test_without_interaction_the_log_rate_is_exactly_additive(additive):
    control = additive.log_rate(None, "control")
    for pair in pairs_of(additive):
        a, b = (additive.log_rate(None, part) - control for part in pair.split("+"))
        np.testing.assert_allclose(additive.log_rate(None, pair) - control, a + b, atol=1e-10)
        assert np.abs(a).max() > 0.3 and np.abs(b).max() > 0.3


def test_with_interaction_pairs_deviate_and_effects_depend_on_the_cell(screen):
    control = screen.log_rate(None, "control")
    deviation = []
    for pair in pairs_of(screen):
        a, b = (screen.log_rate(None, part) - control for part in pair.split("+"))
        assert a.std(axis=0).max() > 0.05  # some genes answer differently from cell to cell
        deviation.append(np.abs(screen.log_rate(None, pair) - control - a - b).max())
    assert np.median(deviation) > 0.3


def test_control_returns_the_cells_own_expectation(screen):
    rows = np.flatnonzero(screen.adata.obs["perturbation"] == "control")
    own = screen.counterfactual(rows, "control")
    np.testing.assert_allclose(own.sum(axis=1), screen.cells.library[rows])
    np.testing.assert_array_equal(own, screen.counterfactual(screen.adata.obs_names[rows], "control"))
    np.testing.assert_array_equal(own, screen.counterfactual(None, "control"))
    # the observed counts are draws around it: residuals of the right size and centre
    counts = screen.adata.X[rows].toarray()
    z = (counts - own) / np.sqrt(own + own**2 / screen.biology.dispersion)
    assert abs(z.mean()) < 3 / np.sqrt(z.size)
    assert z.var() == pytest.approx(1.0, abs=0.1)


def test_library_type_and_batch_are_kept(screen):
    np.testing.assert_allclose(
        screen.counterfactual(None, pairs_of(screen)[0]).sum(axis=1), screen.counterfactual(None, "control").sum(axis=1)
    )


def test_order_of_a_combination_does_not_matter(screen):
    a, b = pairs_of(screen)[0].split("+")
    np.testing.assert_array_equal(screen.counterfactual(None, f"{a}+{b}"), screen.counterfactual(None, f"{b} + {a}+control"))


def test_on_target(screen):
    for name, perturbation in screen.perturbations.items():
        gene = screen.adata.var_names.get_loc(name)
        own = screen.biology.regulators.tolist().index(gene)
        rest = replace(perturbation, activity=0 * perturbation.activity)
        alone = replace(screen, perturbations={name: rest})
        change = alone.log_rate(None, name) - alone.log_rate(None, "control")
        np.testing.assert_allclose(change[:, gene], perturbation.own_gene[own])
        np.testing.assert_allclose(np.delete(change, gene, axis=1), 0.0, atol=1e-12)


def test_expected_log1p_agrees_with_draws():
    rng = np.random.default_rng(0)
    mean = rng.lognormal(0.5, 1.5, (2, 40))
    dispersion = rng.lognormal(1.0, 0.7, 40)
    draws = rng.poisson(rng.gamma(dispersion, mean / dispersion, (40_000, 2, 40))).astype(float)
    values = np.log1p(1e4 * draws / draws.sum(axis=2, keepdims=True))
    error = values.std(axis=0) / np.sqrt(len(draws))
    z = (expected_log1p(mean, dispersion) - values.mean(axis=0)) / error
    assert np.abs(z).max() < 4.5
    assert z.std() < 1.3


def test_means_of_drawn_cells_agree_with_the_truth():
    screen = simulate_screen(n_genes=60, n_perturbations=4, n_pairs=2, cells_per_condition=600, cells_control=1500, seed=1)
    expression, labels = log1p_normalise(screen.adata), screen.adata.obs["perturbation"]
    for condition in screen.conditions:
        cells = expression[labels == condition]
        error = np.sqrt(cells.var(axis=0) / len(cells) + expression[labels == "control"].var(axis=0) / 1500)
        z = (cells.mean(axis=0) - screen.true_mean(condition)) / error
        assert np.sqrt(np.mean(z**2)) < 2.0  # genes are correlated, so not exactly 1
        # the cells' own truth, without sampling of cell states, is closer still
        rows = np.flatnonzero(labels == condition)
        np.testing.assert_allclose(cells.mean(axis=0), screen.true_mean(condition, rows), atol=0.2)


def test_effects_can_be_told_from_noise():
    screen = simulate_screen()
    expression, labels = log1p_normalise(screen.adata), screen.adata.obs["perturbation"].to_numpy()
    control = np.flatnonzero(labels == "control")
    reproducibility = []
    for condition in screen.conditions[:16]:
        rows = np.flatnonzero(labels == condition)
        halves = [expression[rows[half::2]].mean(axis=0) - expression[control[half::2]].mean(axis=0) for half in (0, 1)]
        reproducibility.append(np.corrcoef(*halves)[0, 1])
    assert 0.65 < np.median(reproducibility) < 0.92
    assert min(reproducibility) > 0.2 and max(reproducibility) < 0.98


def test_coexpression_of_control_cells_is_informative():
    screen = simulate_screen(cells_control=3000, n_pairs=0, cells_per_condition=1)
    adata = screen.adata[screen.adata.obs["perturbation"] == "control"]
    expression = log1p_normalise(adata)
    agreement = []
    for name, perturbation in screen.perturbations.items():
        effect = (screen.log_rate(None, name) - screen.log_rate(None, "control")).mean(axis=0) * np.sign(perturbation.own_gene.sum())
        own = adata.var_names.get_loc(name)
        correlation = np.nan_to_num([np.corrcoef(expression[:, own], expression[:, gene])[0, 1] for gene in range(adata.n_vars)])
        others = np.delete(np.arange(adata.n_vars), own)
        agreement.append(np.corrcoef(correlation[others], effect[others])[0, 1])
    assert np.mean(agreement) > 0.15


def test_dose_and_time_columns(with_dose_and_time):
    obs = with_dose_and_time.adata.obs
    control = obs["perturbation"] == "control"
    assert (obs.loc[control, ["dose", "time"]] == 0).all(axis=None)
    compound = obs["perturbation"].str.startswith("C0")
    assert set(obs.loc[compound, "dose"]) == {0.1, 1.0, 10.0}
    assert set(obs.loc[~compound & ~control, "dose"]) == {1.0}
    assert set(obs.loc[~control, "time"]) == {1.0, 3.0, 6.0}
    assert len(with_dose_and_time.condition_table) == 1 + 12 * 3 + 4 * 3 * 3


@pytest.mark.parametrize("vary", ["dose", "time"])
def test_effects_start_at_zero_and_grow_and_saturate(vary):
    screen = simulate_screen(**SMALL, doses=(0.1, 1.0, 10.0), times=(1.0, 3.0, 6.0), interaction=0.0, seed=3)
    control = screen.log_rate(None, "control")
    fixed = {"dose": {"time": 6.0}, "time": {"dose": 1.0}}[vary]
    compounds = [name for name in screen.perturbations if name.startswith("C")]
    for name in compounds + (pairs_of(screen)[:1] if vary == "time" else []):
        size = [np.abs(screen.log_rate(None, name, **{vary: at}, **fixed) - control).mean() for at in (0.0, 0.1, 1.0, 10.0, 1e3, 1e4)]
        assert size[0] == 0.0
        assert (np.diff(size[:5]) > 0).all()
        assert size[5] == pytest.approx(size[4], rel=0.02)


def test_dose_zero_and_time_zero_are_the_control(with_dose_and_time):
    screen = with_dose_and_time
    np.testing.assert_array_equal(screen.counterfactual(None, "C00", dose=0.0, time=3.0), screen.counterfactual(None, "control"))
    np.testing.assert_array_equal(screen.true_mean("C00", dose=10.0, time=0.0), screen.true_mean("control"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": "G999"}, "no perturbation 'G999'"),
        ({"condition": "C00", "time": 1.0}, "give its dose"),
        ({"condition": "C00", "dose": 1.0}, "give the time"),
        ({"condition": "C00", "dose": -1.0, "time": 1.0}, "negative"),
        ({"condition": "control", "cells": ["cell9"]}, "not in the simulated screen"),
        ({"condition": "control", "cells": [10**6]}, "positions"),
    ],
)
def test_questions_without_an_answer(with_dose_and_time, arguments, message):
    with pytest.raises(DataError, match=message):
        with_dose_and_time.counterfactual(**{"cells": None, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_perturbations": 300}, "n_perturbations=300"),
        ({"n_pairs": 500}, "120 pairs"),
        ({"cells_control": 0}, "at least 1"),
        ({"doses": (0.0, 1.0)}, "positive"),
        ({"interaction": 2.0}, "between 0"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        simulate_screen(**arguments)


def test_the_smallest_screen():
    screen = simulate_screen(n_genes=5, n_perturbations=1, n_pairs=0, cells_per_condition=3, cells_control=3, n_cell_types=1, n_batches=1)
    assert screen.adata.shape == (6, 5)
    assert len(screen.conditions) == 1


def test_a_gene_beside_a_compound_does_not_grow_with_the_dose(with_dose_and_time):
    gene = with_dose_and_time.conditions[0]
    one, ten = (with_dose_and_time.counterfactual(None, gene, dose=dose, time=1.0) for dose in (1.0, 10.0))
    np.testing.assert_array_equal(one, ten)


def test_the_default_screen_is_frozen():
    """Results are comparable across versions only while this holds: a change of the default screen is a new benchmark."""
    screen = simulate_screen()
    assert screen.conditions[:3] == ("G003", "G009", "G018")
    assert screen.conditions[16:18] == ("G003+G042", "G003+G198")
    np.testing.assert_allclose(screen.true_mean(screen.conditions[20])[:3], [2.41813, 2.88788, 2.89985], atol=1e-4)
    assert screen.adata.X.nnz == 1053158
