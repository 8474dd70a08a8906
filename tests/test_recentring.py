"""Where the population goes, and how its cells differ: set exactly, whatever the flow says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from counterflow.data.ledger import Ledger
from counterflow.data.schema import Setup
from counterflow.data.screen import read_screen
from counterflow.fitting import fit_gene_rule, fit_rule, fit_space, states_of
from counterflow.prediction import Correction
from counterflow.recentring import Origins, Recentring, Trust
from counterflow.sampling import Sampling
from counterflow.spaces import build


def test_the_mean_is_set_and_the_spread_is_scaled():
    generator = torch.Generator().manual_seed(0)
    control, after = torch.randn(2, 50, 3, generator=generator)
    moved = after - control
    correction = Correction(
        torch.tensor([[1.0, 2.0, 3.0]]),
        moved.mean(0, keepdim=True),
        torch.tensor([0.5]),
        torch.zeros(1, 3),
        None,
        np.zeros(50, dtype=np.int64),
    )
    result = correction.apply(control, after, np.arange(50)) - control
    assert torch.allclose(result.mean(0), torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)
    assert torch.allclose(result - result.mean(0), 0.5 * (moved - moved.mean(0)), atol=1e-5)
    assert torch.equal(Correction.none(50, 3).apply(control, after, np.arange(50)), control + (after - control))


@pytest.fixture(scope="module")
def fitted(tiny_screen):
    adata = tiny_screen.adata
    setup = Setup("perturbation", "control", match_keys=("cell_type",))
    screen = read_screen(adata, setup)
    space = build("pca", len(screen.genes), n_components=8)
    fit_space(space, screen, 0, Ledger())
    return screen, space, Recentring(fit_rule(screen, states_of(screen, space), Ledger()), fit_gene_rule(screen, Ledger()))


def corrected(fitted, trust, reference=None, some=None, scale=1.0):
    screen, space, rule = fitted
    cells = screen.rows(screen.is_control) if some is None else some
    spec = next(spec for spec in screen.conditions if len(spec.parts) == 1)

    def flow(controls, states):
        return torch.ones_like(states) * torch.linspace(-1, 1, len(states))[:, None] + 5.0

    support = ["seen"] * len(cells.cells)
    return spec, rule.correction(spec, cells, support, Origins(reference, space), flow, {"seen": trust}, scale=scale, calibrated=True)


def test_without_trust_the_mean_is_the_rules_and_with_full_trust_the_flows(fitted):
    screen, space, rule = fitted
    spec, nothing = corrected(fitted, Trust(0.0, 0.0))
    _, full = corrected(fitted, Trust(1.0, 1.0))
    assert len(nothing.shift) == len(screen.contexts) and nothing.spread.tolist() == [0.0] * len(screen.contexts)
    for k, level in enumerate(screen.contexts):
        rows = np.flatnonzero(screen.is_control & (screen.context == k))
        here = space.encode(screen.counts[rows], screen.library[rows]).double().mean(0).numpy()
        assert nothing.shift[k].numpy() == pytest.approx(rule.states.effect(spec, level, here), abs=1e-4)
        assert full.shift[k].numpy() == pytest.approx(rule.states.anchor(spec) + full.center[k].numpy(), abs=1e-4)


def test_a_cell_is_corrected_alike_in_any_company_where_the_model_knows_its_context(fitted):
    screen = fitted[0]
    reference = screen.rows(screen.is_control)
    _, all_cells = corrected(fitted, Trust(0.0, 0.5), reference)
    few = reference.rows(np.arange(0, len(reference.cells), 7))
    _, some = corrected(fitted, Trust(0.0, 0.5), reference, few)
    for name in ("shift", "center", "spread", "factor"):
        assert np.array_equal(np.asarray(getattr(all_cells, name)), np.asarray(getattr(some, name)))


def test_an_effect_asked_of_unknown_controls_is_measured_on_them(fitted):
    screen = fitted[0]
    everyone = screen.rows(screen.is_control)

    def elsewhere(context):
        cells = screen.rows(screen.is_control & (screen.context == context))
        return cells, replace(cells, contexts=(("elsewhere",),), context=cells.context * 0)

    cells, strange = elsewhere(0)
    _, correction = corrected(fitted, Trust(0.0, 0.0), everyone, strange)
    _, known = corrected(fitted, Trust(0.0, 0.0), None, cells)
    _, other = corrected(fitted, Trust(0.0, 0.0), everyone, elsewhere(1)[1])
    assert np.array_equal(correction.factor, known.factor)  # the same controls, the same answer
    assert not np.array_equal(correction.factor, other.factor)


def test_contrast_guidance_scales_the_rule_too(fitted):
    _, once = corrected(fitted, Trust(0.0, 0.0))
    _, twice = corrected(fitted, Trust(0.0, 0.0), scale=2.0)
    assert torch.allclose(twice.shift, 2 * once.shift)
    assert Sampling(guidance=3.0).effect_scale == 3.0 and Sampling(guidance=3.0, guidance_interval=(0.0, 0.5)).effect_scale == 2.0
    assert Sampling(guidance=3.0, guidance_kind="classifier_free").effect_scale == Sampling().effect_scale == 1.0
