"""Blocks with different mixers in one trunk."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.errors import ConfigError
from counterflow.nn.attention import InducedSetAttention, SelfAttention
from counterflow.nn.longconv import LongConvolution
from counterflow.nn.ssm import BidirectionalSSM

KIND = {"attention": SelfAttention, "set": InducedSetAttention, "ssm": BidirectionalSSM, "longconv": LongConvolution}


def kinds(**kwargs):
    return [type(block.mixer) for block in build("hybrid", (20,), 12, width=32, n_heads=2, **kwargs).trunk.blocks]


def test_blocks_take_their_mixers_in_turn():
    assert kinds(depth=3) == [BidirectionalSSM, SelfAttention, BidirectionalSSM]
    assert kinds(depth=1) == [BidirectionalSSM]
    assert kinds(depth=5, mixers=["longconv", "set", "attention"]) == [
        KIND[name] for name in ("longconv", "set", "attention", "longconv", "set")
    ]


def test_of_one_mixer_it_is_that_network(randomise, make_condition):
    small = {"width": 32, "depth": 2, "n_heads": 2, "genes_per_token": 2}
    one, other = randomise(build("dit", (20,), 12, **small)), build("hybrid", (20,), 12, mixers=["attention"], **small)
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(3, 20), torch.rand(3), make_condition(3)
    assert torch.equal(one(*inputs), other(*inputs))


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        (["atention"], "did you mean 'attention'"),
        ("ssm", "list of at least one"),
        ([], "list of at least one"),
        (["ssm"] * 3, "3 mixers for 2 blocks"),
    ],
)
def test_what_cannot_be_is_said(mixers, message):
    with pytest.raises(ConfigError, match=message):
        kinds(depth=2, mixers=mixers)
