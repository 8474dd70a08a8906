import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.tokens import GeneHead, GeneTokenizer


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def test_a_gene_token_is_its_row_plus_value_times_its_direction():
    tokenizer, x = randomised(GeneTokenizer(7, 4)), torch.randn(2, 7)
    expected = tokenizer.embedding[3] + x[1, 3] * tokenizer.direction[3, 0]
    torch.testing.assert_close(tokenizer(x)[1, 3], expected)


def test_a_module_token_sums_its_genes_in_the_stored_order():
    order = torch.tensor([6, 2, 0, 1, 3, 5, 4])
    tokenizer, x = randomised(GeneTokenizer(7, 4, genes_per_token=3, order=order)), torch.randn(2, 7)
    tokens = tokenizer(x)
    assert tokens.shape == (2, 3, 4)
    expected = tokenizer.embedding[1] + sum(x[0, order[3 + j]] * tokenizer.direction[1, j] for j in range(3))
    torch.testing.assert_close(tokens[0, 1], expected)
    torch.testing.assert_close(tokens[0, 2], tokenizer.embedding[2] + x[0, 4] * tokenizer.direction[2, 0])  # the rest is padding


@pytest.mark.parametrize("genes_per_token", [1, 2, 3])
def test_the_head_puts_each_gene_back_where_it_came_from(genes_per_token):
    order, x = torch.randperm(7), torch.randn(2, 7)
    tokenizer, head = GeneTokenizer(7, 7, genes_per_token, order), GeneHead(7, 7, genes_per_token, order)
    head.norm = torch.nn.Identity()
    with torch.no_grad():  # token = its values in the first k coordinates, and the head reads them there
        tokenizer.embedding.zero_()
        tokenizer.direction.copy_(torch.eye(7)[:genes_per_token].expand_as(tokenizer.direction))
        head.weight.copy_(torch.eye(7)[:, :genes_per_token].expand_as(head.weight))
    torch.testing.assert_close(head(tokenizer(x), torch.zeros(1, 1, 7)), x)


@pytest.mark.parametrize("order", [None, torch.tensor([4, 2, 0, 1, 3, 6, 5])])
def test_features_select_the_rows_of_the_genes_given(order):
    tokenizer, head = randomised(GeneTokenizer(7, 4, order=order)), randomised(GeneHead(7, 4, order=order))
    x, c, features = torch.randn(2, 7), torch.randn(2, 1, 4), torch.tensor([5, 0, 3])
    everything = head(tokenizer(x), c)
    torch.testing.assert_close(head(tokenizer(x[:, features], features), c, features), everything[:, features])


def test_the_order_is_saved_with_the_weights():
    order = torch.randperm(7)
    trained, fresh = GeneTokenizer(7, 4, 2, order), GeneTokenizer(7, 4, 2, torch.arange(7))
    fresh.load_state_dict(trained.state_dict())
    x = torch.randn(2, 7)
    assert torch.equal(fresh(x), trained(x))


def test_a_fresh_head_is_exactly_zero():
    assert (GeneHead(7, 4, 2)(torch.randn(2, 4, 4), torch.randn(2, 1, 4)) == 0).all()


def test_what_cannot_be_a_layout_is_refused():
    with pytest.raises(ConfigError, match="permutation"):
        GeneTokenizer(4, 8, order=torch.tensor([0, 1, 1, 2]))
    with pytest.raises(ConfigError, match="genes_per_token"):
        GeneTokenizer(4, 8, genes_per_token=5)
    with pytest.raises(ConfigError, match="one gene per token"):
        GeneTokenizer(4, 8, genes_per_token=2)(torch.randn(1, 2), torch.tensor([0, 1]))
