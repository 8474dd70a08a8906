import math

import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.attention import CrossAttention, InducedSetAttention, SelfAttention

MIXERS = [lambda: SelfAttention(12, 3), lambda: InducedSetAttention(12, 3, n_inducing=5)]


def test_self_attention_is_the_softmax_formula():
    layer, x = SelfAttention(6, 2).double(), torch.randn(1, 4, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x)[0].chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = torch.softmax(q[:, head] @ k[:, head].T / math.sqrt(3), dim=-1)
        heads.append(weights @ v[:, head])
    torch.testing.assert_close(layer(x)[0], layer.out(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("make", MIXERS)
def test_mixers_are_permutation_equivariant(make):
    mixer, x, order = make(), torch.randn(2, 30, 12), torch.randperm(30)
    torch.testing.assert_close(mixer(x)[:, order], mixer(x[:, order]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", MIXERS)
def test_masked_tokens_are_as_if_absent(make):
    mixer, x = make(), torch.randn(2, 9, 12)
    mask = torch.arange(9).expand(2, 9) < 6
    torch.testing.assert_close(mixer(x, mask)[:, :6], mixer(x[:, :6]), atol=1e-6, rtol=1e-5)


def test_cross_attention_ignores_masked_context_and_shares_a_context_of_batch_one():
    layer, x, context = CrossAttention(12, 3, context_width=5), torch.randn(4, 2, 12), torch.randn(1, 3, 5)
    mask = torch.tensor([[True, True, False]])
    shared = layer(x, context, mask)
    torch.testing.assert_close(shared, layer(x, context[:, :2].repeat(4, 1, 1)), atol=1e-6, rtol=1e-5)
    changed = context.clone()
    changed[:, 2] += 100
    assert torch.equal(layer(x, changed, mask), shared)
    changed[:, 1] += 1
    assert not torch.allclose(layer(x, changed, mask), shared, atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="12 .* 5 heads"):
        SelfAttention(12, 5)
