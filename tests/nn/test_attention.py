import math

import pytest
import torch

from counterflow.backbones import build
from counterflow.errors import ConfigError
from counterflow.nn.attention import CrossAttention, HeadNorm, InducedSetAttention, SelfAttention

MIXERS = [
    lambda: SelfAttention(12, 3),
    lambda: SelfAttention(12, 3, qk_norm=True),
    lambda: InducedSetAttention(12, 3, n_inducing=5),
    lambda: InducedSetAttention(12, 3, n_inducing=5, qk_norm=True),
]


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


def test_qk_norm_is_the_softmax_formula_of_normalised_queries_and_keys():
    layer, x = SelfAttention(6, 2, qk_norm=True).double(), torch.randn(1, 4, 6, dtype=torch.float64)
    for weight in (layer.norm.q.weight, layer.norm.k.weight):
        torch.nn.init.normal_(weight, 1, 0.5)
    q, k, v = layer.qkv(x)[0].chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        normed = [part[:, head] / (part[:, head].square().mean(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k)]
        weights = torch.softmax((normed[0] * layer.norm.q.weight) @ (normed[1] * layer.norm.k.weight).T / math.sqrt(3), dim=-1)
        heads.append(weights @ v[:, head])
    torch.testing.assert_close(layer(x)[0], layer.out(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_only_with_qk_norm_does_attention_stay_soft_when_weights_grow(qk_norm):
    layer, x = SelfAttention(12, 3, qk_norm=qk_norm), torch.randn(2, 30, 12)
    before = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:24] *= 30  # queries and keys
    assert torch.allclose(layer(x), before, atol=1e-4) == qk_norm


@pytest.mark.parametrize("name", ["dit", "set"])
def test_backbones_hand_qk_norm_on(name):
    def norms(**kwargs):
        return [m for m in build(name, (9,), 4, width=8, depth=2, n_heads=2, **kwargs).modules() if isinstance(m, HeadNorm)]

    assert norms() == []
    assert len(norms(qk_norm=True)) == (4 if name == "dit" else 8)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_qk_norm_adds_no_weights_when_off(qk_norm):
    assert any("norm" in key for key in SelfAttention(8, 2, qk_norm=qk_norm).state_dict()) == qk_norm
