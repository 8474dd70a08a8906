import numpy as np
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import r2_score

from counterflow.evaluate.metrics.means import (
    cosine_delta,
    l2_top1000,
    mae,
    mse,
    pearson_delta,
    pearson_delta_pertref,
    pearson_delta_top20,
    r2_delta,
    r2_mean,
    rmse,
    top_genes,
    welch_t,
    wmse,
)


@pytest.fixture
def means():
    """Control mean, a generic response, and the real mean of one condition: generic plus something of its own."""
    rng = np.random.default_rng(0)
    control = rng.gamma(1, 1, 200)
    generic = control + 0.4 * rng.normal(size=200)
    return control, generic, generic + 0.2 * rng.normal(size=200)


def test_the_truth_is_perfect(means):
    control, generic, real = means
    abs_t = np.abs(real - control)
    assert pearson_delta(real, real, control) == pytest.approx(1)
    assert pearson_delta_top20(real, real, control, abs_t) == pytest.approx(1)
    assert pearson_delta_pertref(real, real, generic) == pytest.approx(1)
    assert cosine_delta(real, real, control) == pytest.approx(1)
    assert r2_mean(real, real) == r2_delta(real, real, control) == 1
    assert mse(real, real) == mae(real, real) == rmse(real, real) == l2_top1000(real, real, control) == wmse(real, real, abs_t) == 0


def test_no_effect_scores_zero_and_not_nan_but_r2_of_means_is_high(means):
    control, _, real = means
    assert pearson_delta(control, real, control) == cosine_delta(control, real, control) == 0
    assert r2_delta(control, real, control) < 0
    assert r2_mean(control, control + 0.1 * (real - control)) > 0.9


def test_without_a_real_effect_there_is_no_answer(means):
    control, _, real = means
    assert np.isnan(pearson_delta(real, control, control))
    assert np.isnan(cosine_delta(real, control, control))
    assert np.isnan(r2_delta(real, control, control))


def test_a_generic_response_correlates_but_knows_nothing_of_its_own(means):
    control, generic, real = means
    assert pearson_delta(generic, real, control) > 0.8
    rounding = 1e-9 * np.random.default_rng(0).normal(size=200)
    assert pearson_delta_pertref(generic + rounding, real, generic) == pearson_delta_pertref(generic, real, generic) == 0
    assert cosine_delta(control + rounding, real, control) == 0


def test_correlations_do_not_see_scale_and_errors_reward_shrinking(means):
    control, _, real = means
    rng = np.random.default_rng(1)
    noisy = real + 0.6 * rng.normal(size=200)
    scaled = lambda w: control + w * (noisy - control)  # noqa: E731
    assert pearson_delta(scaled(3), real, control) == pytest.approx(pearson_delta(noisy, real, control))
    assert cosine_delta(scaled(3), real, control) == pytest.approx(cosine_delta(noisy, real, control))
    assert mse(scaled(0.3), real) < mse(noisy, real) < mse(scaled(3), real)


def test_weak_effects_make_the_control_look_particular(means):
    """pertref of `control` is above 0 when the condition does less than the average one."""
    control, generic, _ = means
    weak = control + 0.1 * (generic - control)
    assert pearson_delta_pertref(control, weak, generic) > 0.9


def test_shared_control_noise_correlates_effects_that_do_not_exist():
    """Hence two ceilings: `split_half` shares the control, `replicate` does not."""
    rng = np.random.default_rng(0)
    y1, y2, c1, c2 = rng.normal(size=(4, 2000)) / np.sqrt(50)  # means of 50 cells, no effect at all
    assert pearson_delta(y1, y2, c1) > 0.4
    assert abs(np.corrcoef(y1 - c1, y2 - c2)[0, 1]) < 0.1


def test_bootstrapped_halves_share_cells_and_flatter_the_ceiling():
    rng = np.random.default_rng(0)
    cells = 0.1 * rng.normal(size=200) + rng.normal(size=(60, 200))
    halves = np.split(rng.permutation(60), 2)
    honest = pearson_delta(cells[halves[0]].mean(0), cells[halves[1]].mean(0), np.zeros(200))
    first, second = rng.integers(0, 60, (2, 60))
    assert pearson_delta(cells[first].mean(0), cells[second].mean(0), np.zeros(200)) > honest + 0.1


def test_wmse_listens_to_the_genes_that_change(means):
    control, _, _ = means
    real = control.copy()
    real[:5] += 2
    abs_t = np.abs(np.random.default_rng(0).normal(size=200))
    abs_t[:5] = 30
    quiet, loud = real.copy(), real.copy()
    quiet[5:10] += 1
    loud[:5] += 1
    assert mse(quiet, real) == pytest.approx(mse(loud, real))
    assert wmse(loud, real, abs_t) > 50 * wmse(quiet, real, abs_t)
    assert wmse(real + 1, real, abs_t) == pytest.approx(1)  # the weights sum to 1
    assert np.isnan(wmse(loud, real, np.zeros(200)))


def test_r2_puts_the_truth_first(means):
    control, generic, real = means
    assert r2_mean(generic, real) == pytest.approx(r2_score(real, generic))
    assert r2_mean(generic, real) != pytest.approx(r2_score(generic, real))
    assert r2_delta(generic, real, control) == pytest.approx(r2_score(real - control, generic - control))


def test_l2_top_looks_at_highly_expressed_genes_only(means):
    control, _, real = means
    changed = real.copy()
    changed[np.argmin(control)] += 5
    assert l2_top1000(changed, real, control, n_genes=50) == 0
    assert l2_top1000(changed, real, control) == pytest.approx(5)


def test_welch_t_is_scipys_and_finite_for_constant_genes():
    rng = np.random.default_rng(0)
    real, control = rng.normal(1, 2, (30, 8)), rng.normal(0, 1, (70, 8))
    assert np.allclose(welch_t(real, control), ttest_ind(real, control, equal_var=False).statistic)
    real[:, 0] = control[:, 0] = 0
    assert welch_t(real, control)[0] == 0
    assert np.isnan(welch_t(real[:1], control)).all()


def test_top_genes_are_sorted_and_all_when_few():
    assert top_genes(np.array([1.0, 5.0, 3.0]), 2).tolist() == [1, 2]
    assert top_genes(np.array([1.0, 5.0]), 20).tolist() == [1, 0]
