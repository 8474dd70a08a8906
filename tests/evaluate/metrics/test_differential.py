import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from counterflow.evaluate.metrics.differential import (
    Differential,
    de_auprc,
    de_direction,
    de_jaccard,
    de_lfc_nmae,
    des,
    differential,
)


@pytest.fixture(scope="module")
def screen():
    """Real, other half, control: 120 genes, of which the first 40 change."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 1, 120)
    fold = np.where(np.arange(120) < 40, np.exp(rng.choice([-1, 1], 120) * 0.8), 1)
    draw = lambda mu, n: np.log1p(rng.poisson(mu, (n, 120)))  # noqa: E731
    return draw(rate * fold, 150), draw(rate * fold, 150), draw(rate, 200)


def test_the_test_is_scipys_with_ties_and_benjamini_hochberg(screen):
    real, _, control = screen
    de = differential(real, control)
    expected = mannwhitneyu(real, control, axis=0, method="asymptotic").pvalue
    assert np.allclose(de.p, expected, rtol=1e-9)
    assert np.allclose(de.q, false_discovery_control(expected))
    assert ((de.z > 0) == (de.lfc > 0))[de.called()].all()
    assert de.called()[:40].mean() > 0.9 and de.called()[40:].mean() < 0.1


def test_constant_genes_are_not_called():
    de = differential(np.zeros((5, 3)), np.zeros((7, 3)))
    assert (de.p == 1).all() and (de.lfc == 0).all()


def test_blocks_of_genes_are_one_test():
    rng = np.random.default_rng(0)
    cells, control = rng.poisson(1, (2, 12, 1203))
    assert np.allclose(differential(cells, control).p, mannwhitneyu(cells, control, axis=0, method="asymptotic").pvalue)


def test_truth_other_half_and_control_are_ordered(screen):
    real, other, control = screen
    truth, half, none = (differential(x, control) for x in (real, other, control[:100]))
    for metric in (de_jaccard, des, de_direction, de_auprc):
        assert metric(truth, truth) == 1
        assert 1 >= metric(half, truth) > 0.8 > metric(none, truth)
    assert de_lfc_nmae(truth, truth) == 0
    assert de_lfc_nmae(half, truth) < 0.3 < 0.8 < de_lfc_nmae(none, truth) < 1.2


def test_a_tile_calls_everything_which_lowers_the_overlap(screen):
    """Cells without noise make every gene significant: Jaccard falls although nothing real is missed."""
    real, _, control = screen
    truth = differential(real, control)
    all_called = differential(np.repeat(real.mean(0, keepdims=True), 150, 0), control)
    assert all_called.called().sum() > 2 * truth.called().sum()
    assert all_called.called()[truth.called()].mean() > 0.9
    assert de_jaccard(all_called, truth) < 0.5
    assert des(all_called, truth) <= 1


def made(q, lfc):
    q, lfc = np.array(q), np.array(lfc)
    return Differential(z=-np.log(q) * np.sign(lfc), p=q, q=q, lfc=lfc)


def test_des_looks_at_the_strongest_calls_only():
    real = made([0.01, 0.01, 0.5, 0.5], [1.0, -1.0, 0.1, 0.1])
    assert des(made([0.01] * 4, [0.1, 0.1, 3.0, 3.0]), real) == 0
    assert des(made([0.01] * 4, [3.0, 0.1, 3.0, 0.1]), real) == 0.5
    assert des(made([0.5, 0.01, 0.5, 0.5], [9.0, 0.1, 3.0, 3.0]), real) == 0.5  # strong but not significant does not count


def test_without_real_calls_there_is_no_answer_but_agreement_on_nothing():
    none, some = made([0.9] * 30, [0.1] * 30), made([0.01] * 9 + [0.9] * 21, [1.0] * 30)
    assert np.isnan(des(some, none))
    assert de_jaccard(none, none) == 1 and de_jaccard(some, none) == 0
    for metric in (de_direction, de_lfc_nmae, de_auprc):
        assert np.isnan(metric(some, some)), "fewer than ten called genes"
    assert des(some, some) == 1


def test_ranking_does_not_tie_where_p_values_underflow():
    rng = np.random.default_rng(0)
    control = rng.normal(size=(3000, 24))
    real = control + np.where(np.arange(24) < 12, 3, 0) + 0.05 * rng.normal(size=(3000, 24))
    predicted = control + np.where(np.arange(24) < 12, 4, 2)
    de = differential(predicted, control)
    assert (de.p == 0).all()
    assert de_auprc(de, differential(real, control)) == 1
