import pytest
import torch
from torch import nn

from counterflow.nn.attention import SelfAttention
from counterflow.nn.blocks import AdaLNBlock, CrossBlock, InContextBlock


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
