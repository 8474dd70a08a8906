import pytest
import torch
from torch import nn

from counterflow.nn.attention import SelfAttention
from counterflow.nn.blocks import AdaLNBlock, CrossBlock, InContextBlock, PlainAdaLNBlock


class MeanMixer(nn.Module):
    """The smallest mixer there is: no parameters, no mask."""

    def forward(self, x):
        return x.mean(1, keepdim=True).expand_as(x)


def test_fresh_conditioned_blocks_are_the_identity():
    x, c, context, mask = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(AdaLNBlock(8, SelfAttention(8, 2))(x, c), x)
    assert torch.equal(CrossBlock(8, SelfAttention(8, 2), n_heads=2)(x, c, context, mask), x)


def test_gates_open_to_the_residual_formula():
    block, x = AdaLNBlock(4, MeanMixer()), torch.randn(2, 5, 4)
    shift, scale, gate = torch.randn(3, 4)
    with torch.no_grad():
        block.modulation.linear.bias.copy_(torch.cat([shift, scale, gate, torch.zeros(12)]))
    norm = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    mixed = (norm * (1 + scale) + shift).mean(1, keepdim=True)
    torch.testing.assert_close(block(x, torch.zeros(2, 1, 4)), x + gate * mixed)


def test_without_gates_the_sublayers_are_at_work_from_the_start():
    block, x = PlainAdaLNBlock(4, MeanMixer()), torch.randn(2, 5, 4)
    norm = nn.LayerNorm(4, eps=1e-6, elementwise_affine=False)
    fresh = x + norm(x).mean(1, keepdim=True)
    torch.testing.assert_close(block(x, torch.randn(2, 1, 4)), fresh + block.mlp(norm(fresh)))
    shift, scale = torch.randn(2, 4)
    with torch.no_grad():
        block.film_mixer.linear.bias.copy_(torch.cat([shift, scale]))
        block.mlp[2].weight.zero_()
    torch.testing.assert_close(block(x, torch.zeros(2, 1, 4)), x + (norm(x) * (1 + scale) + shift).mean(1, keepdim=True))


def test_layer_scale_lets_the_condition_in_by_a_ten_thousandth_and_learns():
    x, c, context, mask = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    block = CrossBlock(8, MeanMixer(), n_heads=2, layer_scale=True)
    torch.testing.assert_close(block(x, c, context, mask), x + 1e-4 * block.cross(block.norm_cross(x), context, mask))
    block(x, c, context, mask).square().sum().backward()
    for weight in (block.scale_cross.factor, block.cross.out.weight, block.cross.q.weight):
        assert (weight.grad != 0).any()  # never 0 twice: both factors of the branch learn from the first step


@pytest.mark.parametrize("mixer", [MeanMixer(), nn.Linear(8, 8)])
def test_any_mixer_fits(mixer):
    block = AdaLNBlock(8, mixer)
    nn.init.normal_(block.modulation.linear.bias)
    x = torch.randn(2, 5, 8)
    assert block(x, torch.randn(2, 1, 8)).shape == x.shape
    assert not torch.equal(block(x, torch.zeros(2, 1, 8)), x)


def test_in_context_block_leaves_out_masked_tokens():
    block, x = InContextBlock(8, SelfAttention(8, 2)), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, False, True, True]]).expand(2, -1)
    changed = x.clone()
    changed[:, 2] += 10
    keep = mask[0]
    assert torch.equal(block(x, mask)[:, keep], block(changed, mask)[:, keep])
