"""The set encoder: order cannot matter, padding is nothing, control and null are two things."""

import pytest
import torch

from counterflow.conditions.encoder import ConditionEncoder, curve_features
from counterflow.types import ConditionIds

C = 12
A, B, NEW = 2, 3, 5  # entity 5 was not met in training


@pytest.fixture(params=["sum", "mean", "attention"])
def encoder(request, randomise):
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    features[1] = torch.nan  # B has none
    trained = torch.tensor([True, True, True, False])
    encoder = ConditionEncoder(features, trained, (2, 3), width=C, pool=request.param)
    return randomise(encoder, seed=1).eval()


def ids(*sets, dose=None, time=None, covariates=None):
    width = max(1, *map(len, sets))
    perturbation = torch.tensor([[*s, *[0] * (width - len(s))] for s in sets])
    return ConditionIds(
        perturbation,
        (perturbation > 0).float() if dose is None else torch.tensor(dose),
        torch.zeros(len(sets)) if time is None else torch.tensor(time),
        torch.ones(len(sets), 2, dtype=torch.long) if covariates is None else torch.tensor(covariates),
    )


def far(a, b):
    return (a.pooled - b.pooled).abs().max() > 1e-4


def test_shapes_and_mask(encoder):
    out = encoder(ids([], [A], [A, B]))
    assert out.pooled.shape == (3, C) and out.tokens.shape == (3, 3, C)  # one context token, two elements
    assert out.mask.tolist() == [[True, True, False], [True, True, False], [True, True, True]]


def test_order_of_a_combination_cannot_matter(encoder):
    torch.testing.assert_close(encoder(ids([A, B])).pooled, encoder(ids([B, A])).pooled)


def test_padding_is_nothing(encoder):
    wide = encoder(ids([A], [A, B, NEW]))
    torch.testing.assert_close(wide.pooled[:1], encoder(ids([A])).pooled)


def test_conditions_are_told_apart(encoder):
    pooled = encoder(ids([], [A], [B], [A, B], [NEW])).pooled
    assert (torch.cdist(pooled, pooled) + 10 * torch.eye(5)).min() > 1e-3


def test_control_and_null_are_two_things_and_the_null_hides_what_was_done(encoder):
    drop = torch.tensor([True, True, True])
    null = encoder(ids([], [A], [A, B]), drop)
    torch.testing.assert_close(null.pooled[0], null.pooled[1])
    torch.testing.assert_close(null.pooled[0], null.pooled[2])
    assert null.mask.sum(1).tolist() == [2, 2, 2]
    assert (null.pooled[0] - encoder(ids([])).pooled[0]).abs().max() > 1e-3


def test_context_is_read_and_survives_the_null(encoder):
    drop = torch.tensor([True])
    for keyword in ({"time": [4.0]}, {"covariates": [[2, 1]]}, {"covariates": [[1, 3]]}, {"covariates": [[0, 1]]}):
        assert far(encoder(ids([A], **keyword)), encoder(ids([A])))
        assert far(encoder(ids([A], **keyword), drop), encoder(ids([A]), drop))


def test_dose_is_read(encoder):
    assert far(encoder(ids([A], dose=[[0.3]])), encoder(ids([A])))


def test_curve_features_vanish_at_nothing_and_rise():
    amount = torch.tensor([0.0, 0.1, 1.0, 10.0, 100.0])
    values = curve_features(amount)
    assert (values[0] == 0).all() and (values.diff(dim=0) > 0).all()


def test_an_entity_without_training_has_no_identity_of_its_own(encoder):
    with torch.no_grad():
        before = encoder(ids([NEW], [A])).pooled
        encoder.identity.weight[NEW] += 1
        encoder.identity.weight[A] += 1
        after = encoder(ids([NEW], [A])).pooled
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_identities_are_hidden_in_training_only(encoder):
    encoder.feature_dropout = 1.0
    shown = encoder(ids([A]))
    hidden = encoder(ids([A]), None, torch.Generator())
    assert far(shown, hidden)
    encoder.feature_dropout = 0.0
    torch.testing.assert_close(encoder(ids([A]), None, torch.Generator()).pooled, shown.pooled)


def test_missing_features_are_the_mean_and_a_flag(encoder):
    table = encoder.features
    torch.testing.assert_close(table[B, :-1], table[[2, 4, 5], :-1].mean(0))
    assert table[:, -1].tolist() == [0, 1, 0, 1, 0, 0]  # padding, unknown, then A, B (no features), ...


def test_sum_pool_is_additive(randomise):
    encoder = randomise(ConditionEncoder(torch.randn(4, 3), torch.ones(4, dtype=torch.bool), width=C))
    context = encoder.context(curve_features(torch.zeros(1)))
    a, b, both = (encoder(ids(s, covariates=[[]]))[0] - context for s in ([A], [B], [A, B]))
    torch.testing.assert_close(a + b, both)
