"""Token networks over groups of genes, and over ranks."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.errors import ConfigError

S, C, B = 12, 12, 5
TABLE = torch.tensor([[0, 1, 2, 3], [3, 4, 5, -1], [6, 7, 8, 9], [10, 11, 0, 3]])  # 3 is in three modules, 0 in two
SMALL = {"width": 32, "depth": 2, "n_heads": 2}
NAMES = ("dit", "set", "ssm", "longconv", "hybrid")
every_network = pytest.mark.parametrize("name", NAMES)
every_kind = pytest.mark.parametrize("modules", [TABLE, "rank"], ids=["table", "rank"])


def tiny(name, modules, **kwargs):
    return build(name, (S,), C, modules=modules, **SMALL | kwargs)


def inputs(make_condition):
    return torch.randn(B, S), torch.rand(B), make_condition(B)


@every_kind
@every_network
def test_fresh_is_zero_and_every_weight_learns(name, modules, randomise, make_condition):
    model = tiny(name, modules)
    assert (model(*inputs(make_condition)) == 0).all()
    randomise(model)(*inputs(make_condition)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


@every_network
def test_every_gene_gets_an_answer_and_is_heard_by_all(name, randomise, make_condition):
    model, (x, t, condition) = randomise(tiny(name, TABLE)).double(), inputs(make_condition)
    x, t, condition = x.double(), t.double(), condition._replace(pooled=condition.pooled.double(), tokens=condition.tokens.double())
    x.requires_grad_()
    velocity = model(x, t, condition)
    for gene in range(S):
        (heard,) = torch.autograd.grad(velocity[:, gene].sum(), x, retain_graph=True)
        assert (heard != 0).all()


@every_network
def test_disjoint_modules_of_equal_size_are_genes_taken_k_at_a_time(name, randomise, make_condition):
    if name == "set":
        pytest.skip("takes one gene at a time")
    table = torch.randperm(S).view(4, 3)
    modules, pieces = randomise(tiny(name, table)), tiny(name, None, genes_per_token=3, feature_order=table.flatten())
    weights = modules.state_dict()
    weights["head.bias"] = weights["head.bias"][table]
    for room in ("tokenizer", "head"):
        weights[f"{room}.layout.order"] = weights.pop(f"{room}.layout.members").flatten()
    pieces.load_state_dict(weights)
    given = inputs(make_condition)
    torch.testing.assert_close(modules(*given), pieces(*given))


@every_network
def test_saved_modules_come_back(name, randomise, make_condition):
    """Whatever table of that shape the fresh network was built with."""
    model, other = randomise(tiny(name, TABLE)), tiny(name, TABLE.flip(0))
    other.load_state_dict(model.state_dict())
    given = inputs(make_condition)
    assert torch.equal(model(*given), other(*given))


@every_network
def test_ranks_are_all_that_is_seen(name, randomise, make_condition):
    model, (x, t, condition) = randomise(tiny(name, "rank")).double(), inputs(make_condition)
    x, t, condition = x.double(), t.double(), condition._replace(pooled=condition.pooled.double(), tokens=condition.tokens.double())
    base = model(x, t, condition)
    torch.testing.assert_close(model(3 * x.exp() + 1, t, condition), base)
    swapped = x.clone()
    swapped[:, [0, 7]] = x[:, [7, 0]]
    assert ((model(swapped, t, condition) - base).abs().max(1).values > 1e-7 * base.abs().max()).all()


def test_ranked_tokens_come_highest_first(make_condition):
    """A trunk that adds its place to every token shows where each gene stood."""
    model, x = tiny("dit", "rank"), torch.randn(B, S)
    model.trunk.forward = lambda tokens, t, condition: (torch.arange(S).float()[None, :, None].expand(B, -1, 32), torch.zeros(B, 1, 32))
    model.head.forward = lambda by_gene, c: by_gene[..., 0]
    places = model(x, torch.rand(B), make_condition(B))
    assert torch.equal(places, x.argsort(1, descending=True).argsort(1).float())


def test_names_and_files_are_not_for_networks(make_condition):
    with pytest.raises(ConfigError, match="table of gene numbers or 'rank', not 'clusters'"):
        tiny("dit", "clusters")
    with pytest.raises(ConfigError, match="features"):
        tiny("dit", TABLE)(torch.randn(1, 2), torch.rand(1), make_condition(1), features=torch.tensor([1, 2]))
    with pytest.raises(ConfigError, match="no common order"):
        tiny("set", TABLE).panels([torch.randn(3)], torch.rand(1), make_condition(1), [torch.arange(3)])
