"""Cells with different numbers of tokens: packed, padded and one by one are the same."""

import pytest
import torch
from torch import nn

from counterflow.nn.attention import InducedSetAttention, SelfAttention
from counterflow.nn.longconv import LongConvolution
from counterflow.nn.packing import Packed
from counterflow.nn.ssm import BidirectionalSSM
from counterflow.nn.trunk import Trunk
from counterflow.types import Condition

LENGTHS, WIDTH, C = (5, 1, 9, 4), 16, 6
MIXERS = {
    "attention": lambda: SelfAttention(WIDTH, 2),
    "induced": lambda: InducedSetAttention(WIDTH, 2, n_inducing=3),
    "ssm": lambda: BidirectionalSSM(WIDTH, 2, state=4),
    "longconv": lambda: LongConvolution(WIDTH),
    "unordered": lambda: BidirectionalSSM(WIDTH, 2, state=4, order="none"),
}
everywhere = pytest.mark.parametrize("conditioning", ["adaln", "cross", "in_context"])
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def make_trunk(mixer, conditioning, **options):
    trunk = Trunk(WIDTH, 2, C, MIXERS[mixer], conditioning, n_heads=2, **options)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.normal_(0, 0.3)
    return trunk.double()


def cells():
    """Tokens cell by cell, times and conditions."""
    tokens = [torch.randn(1, n, WIDTH, dtype=torch.float64) for n in LENGTHS]
    mask = torch.tensor([[True, True, False]]).expand(len(LENGTHS), -1)
    context = torch.randn(len(LENGTHS), 3, C, dtype=torch.float64)
    return tokens, torch.rand(len(LENGTHS), dtype=torch.float64), Condition(context.sum(1), context, mask)


class Masked(nn.Module):
    """A mixer of a padded batch."""

    def __init__(self, mixer, mask):
        super().__init__()
        self.mixer, self.mask = mixer, mask

    def forward(self, tokens):
        return self.mixer(tokens, self.mask)


@everywhere
@every_mixer
def test_packed_is_one_by_one(mixer, conditioning):
    trunk, (tokens, t, condition) = make_trunk(mixer, conditioning), cells()
    packed, c = trunk(torch.cat(tokens, dim=1), t, condition, Packed(torch.tensor(LENGTHS)))
    assert packed.shape == (1, sum(LENGTHS), WIDTH) and c.shape == (len(LENGTHS), 1, WIDTH)
    for i, got in enumerate(packed.split(LENGTHS, dim=1)):
        alone, _ = trunk(tokens[i], t[i : i + 1], Condition(*(part[i : i + 1] for part in condition)))
        torch.testing.assert_close(got, alone)


@pytest.mark.parametrize("conditioning", ["adaln", "cross"])
@every_mixer
def test_packed_is_padded_with_a_mask(mixer, conditioning):
    trunk, (tokens, t, condition) = make_trunk(mixer, conditioning), cells()
    layout = Packed(torch.tensor(LENGTHS))
    together = torch.cat(tokens, dim=1)
    packed, _ = trunk(together, t, condition, layout)
    for block in trunk.blocks:
        block.mixer = Masked(block.mixer, layout.mask)
    padded, _ = trunk(layout.pad(together), t, condition)
    torch.testing.assert_close(packed, layout.pack(padded))


@everywhere
def test_gradients_and_checkpointing(conditioning):
    trunk, (tokens, t, condition) = make_trunk("attention", conditioning), cells()
    layout, together = Packed(torch.tensor(LENGTHS)), torch.cat(tokens, dim=1).requires_grad_()
    results = []
    for trunk.checkpointing in (False, True):
        out, _ = trunk(together, t, condition, layout)
        results.append(torch.autograd.grad(out.square().sum(), together)[0])
    alone = []
    for i, cell in enumerate(tokens):
        out, _ = trunk(cell.requires_grad_(), t[i : i + 1], Condition(*(part[i : i + 1] for part in condition)))
        alone.append(torch.autograd.grad(out.square().sum(), cell)[0])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], torch.cat(alone, dim=1))


@everywhere
def test_one_time_and_one_condition_serve_all_cells(conditioning):
    trunk, (tokens, t, condition) = make_trunk("attention", conditioning), cells()
    layout, together = Packed(torch.tensor(LENGTHS)), torch.cat(tokens, dim=1)
    one = Condition(*(part[:1] for part in condition))
    each = Condition(*(part[:1].repeat(len(LENGTHS), *[1] * (part.ndim - 1)) for part in condition))
    expected, _ = trunk(together, t[:1].repeat(len(LENGTHS)), each, layout)
    torch.testing.assert_close(trunk(together, t[:1], one, layout)[0], expected)


def test_per_token_work_is_done_on_real_tokens_only():
    trunk, (tokens, t, condition) = make_trunk("attention", "adaln"), cells()
    seen = []
    trunk.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1]))
    trunk(torch.cat(tokens, dim=1), t, condition, Packed(torch.tensor(LENGTHS)))
    assert seen == [sum(LENGTHS)]
