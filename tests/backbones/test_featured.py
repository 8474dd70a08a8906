"""Networks that know genes by their features."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.backbones.featured import shown
from counterflow.errors import ConfigError

S, P, C, B = 14, 5, 12, 4
SMALL = {"width": 32, "depth": 2, "n_heads": 2}
CASES = [("set", {}), ("dit", {"genes_per_token": 1}), ("ssm", {"order": "none"})]
every_network = pytest.mark.parametrize(("name", "kwargs"), CASES)


def network(name, kwargs, **others):
    return build(name, (S,), C, gene_features=torch.randn(S, P), **SMALL | kwargs | others)


@every_network
@pytest.mark.parametrize("conditioning", ["adaln", "cross", "in_context"])
def test_fresh_is_zero_and_every_weight_learns(name, kwargs, conditioning, randomise, make_condition):
    model, inputs = network(name, kwargs, conditioning=conditioning).train(), (torch.randn(B, S), torch.rand(B), make_condition(B))
    assert (model(*inputs) == 0).all()
    randomise(model)(*inputs).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


@every_network
def test_genes_in_another_order_get_the_same_answers(name, kwargs, randomise, make_condition):
    model, x, t, condition, order = (
        randomise(network(name, kwargs)).eval(),
        torch.randn(B, S),
        torch.rand(B),
        make_condition(B),
        torch.randperm(S),
    )
    weights = model.state_dict()
    for key in model.PER_GENE:
        weights[key] = weights[key][order]
    other = network(name, kwargs).eval()
    other.load_state_dict(weights)
    torch.testing.assert_close(other(x[:, order], t, condition), model(x, t, condition)[:, order], atol=1e-5, rtol=1e-4)


def test_without_identities_genes_of_equal_features_and_values_get_equal_answers(randomise, make_condition):
    model, x, t, condition = randomise(network("set", {})).eval(), torch.randn(B, S), torch.rand(B), make_condition(B)
    x[:, 3] = x[:, 7]
    model.features[3] = 2 * model.features[7]  # only the direction counts
    assert not torch.allclose(model(x, t, condition)[:, 3], model(x, t, condition)[:, 7], atol=1e-4)
    with torch.no_grad():
        for name in ("embedding", "direction", "weight", "bias"):
            getattr(model, name)[[3, 7]] = 0
    torch.testing.assert_close(model(x, t, condition)[:, 3], model(x, t, condition)[:, 7])


def test_a_hidden_identity_is_not_used_in_training(randomise, make_condition):
    model, x, t, condition = randomise(network("set", {})), torch.randn(B, S), torch.rand(B), make_condition(B)
    hidden = ~shown(t, x)
    (by_weight,) = torch.autograd.grad(model.train()(x, t, condition)[0].sum(), model.weight)
    assert (by_weight[hidden[0]] == 0).all() and (by_weight[~hidden[0]] != 0).any(1).all()
    (by_weight,) = torch.autograd.grad(model.eval()(x, t, condition)[0].sum(), model.weight)
    assert (by_weight != 0).any(1).all()


def test_half_of_the_identities_are_shown_and_no_two_genes_go_together():
    t, x = torch.rand(2000), torch.zeros(2000, 50)
    who = shown(t, x)
    assert torch.equal(who, shown(t, x)) and torch.equal(who[7:9], shown(t[7:9], x[7:9]))
    assert ((who.float().mean(0) - 0.5).abs() < 0.06).all() and ((who.float().mean(1) - 0.5).abs().mean() < 0.12)
    signs = 2 * who.float() - 1
    together = (signs.T @ signs / len(signs)).fill_diagonal_(0).abs()
    assert together.mean() < 0.1 and together.max() < 0.6


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("dit", {"genes_per_token": 2}, "genes as a set"),
        ("ssm", {"genes_per_token": 1}, "genes as a set"),
        ("set", {"modules": "rank"}, "genes as a set"),
        ("set", {"gene_features": "coexpression"}, "names are for CounterFlow"),
        ("set", {"gene_features": torch.zeros(S, 0)}, "table of finite numbers"),
        ("longconv", {}, "no argument 'gene_features'"),
    ],
)
def test_what_cannot_be_is_said(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(name, (S,), C, **SMALL | {"gene_features": torch.randn(S, P)} | kwargs)
