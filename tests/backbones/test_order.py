"""Which backbones know the order of the genes, and which do not."""

import pytest
import torch

from counterflow.backbones import build

S, C, B = 40, 12, 3
SMALL = {"width": 32, "depth": 2, "n_heads": 2}


def permuted_copy(build_model, model, order):
    """The same network for genes listed in another order: the tables of tokenizer and head are permuted, the trunk is not."""
    copy, weights = build_model(), model.state_dict()
    for key in ("tokenizer.embedding", "tokenizer.direction", "head.weight", "head.bias"):
        weights[key] = weights[key][order]
    copy.load_state_dict(weights)
    return copy


def order_dependence(name, randomise, condition, **kwargs):
    """Largest change of the velocity, in units of its largest value, when the genes are listed in another order."""

    def build_model():
        return build(name, (S,), C, **SMALL, **kwargs)

    model, x, t, order = randomise(build_model()), torch.randn(B, S), torch.rand(B), torch.randperm(S)
    before, after = model(x, t, condition)[:, order], permuted_copy(build_model, model, order)(x[:, order], t, condition)
    return ((before - after).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("conditioning", ["adaln", "cross", "in_context"])
@pytest.mark.parametrize(("name", "kwargs"), [("set", {}), ("ssm", {"order": "none"}), ("dit", {"genes_per_token": 1})])
def test_set_models_do_not_know_the_order(name, kwargs, conditioning, randomise, make_condition):
    assert order_dependence(name, randomise, make_condition(B), conditioning=conditioning, **kwargs) < 1e-5


@pytest.mark.parametrize(("name", "kwargs"), [("ssm", {"order": "stored"}), ("longconv", {})])
def test_the_stored_order_matters(name, kwargs, randomise, make_condition):
    assert order_dependence(name, randomise, make_condition(B), genes_per_token=1, **kwargs) > 1e-3


@pytest.mark.parametrize("conditioning", ["adaln", "cross"])
@pytest.mark.parametrize(("name", "kwargs"), [("set", {}), ("ssm", {"order": "none"})])
def test_features_name_the_genes_given(name, kwargs, conditioning, randomise, make_condition):
    model, x, t, condition = (
        randomise(build(name, (S,), C, conditioning=conditioning, **SMALL, **kwargs)),
        torch.randn(B, S),
        torch.rand(B),
        make_condition(B),
    )
    order = torch.randperm(S)
    torch.testing.assert_close(model(x[:, order], t, condition, features=order), model(x, t, condition)[:, order], atol=1e-5, rtol=0)

    subset = order[:15]
    alone = build(name, (15,), C, conditioning=conditioning, **SMALL, **kwargs)  # a network that has never heard of the other genes
    weights = model.state_dict()
    for key in ("tokenizer.embedding", "tokenizer.direction", "head.weight", "head.bias"):
        weights[key] = weights[key][subset]
    alone.load_state_dict(weights)
    got = model(x[:, subset], t, condition, features=subset)
    torch.testing.assert_close(got, alone(x[:, subset], t, condition), atol=1e-6, rtol=1e-5)
    assert (got - model(x, t, condition)[:, subset]).abs().max() > 1e-5  # the genes left out were listened to


@pytest.mark.parametrize("name", ["ssm", "longconv"])
def test_stored_order_follows_the_genes_however_they_are_given(name, randomise, make_condition):
    model = randomise(build(name, (S,), C, genes_per_token=1, feature_order=torch.randperm(S), **SMALL))
    x, t, condition, listed = torch.randn(B, S), torch.rand(B), make_condition(B), torch.randperm(S)
    torch.testing.assert_close(model(x[:, listed], t, condition, features=listed), model(x, t, condition)[:, listed], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["ssm", "dit", "longconv"])
def test_feature_order_is_a_relabelling_of_the_genes(name, randomise, make_condition):
    order = torch.randperm(S)
    plain = randomise(build(name, (S,), C, genes_per_token=3, **SMALL))
    ordered = build(name, (S,), C, genes_per_token=3, feature_order=order, **SMALL)
    weights = plain.state_dict() | dict.fromkeys(("tokenizer.layout.order", "head.layout.order"), order)
    ordered.load_state_dict(weights)
    x, t, condition = torch.randn(B, S), torch.rand(B), make_condition(B)
    torch.testing.assert_close(ordered(x, t, condition)[:, order], plain(x[:, order], t, condition))
