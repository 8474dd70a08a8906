import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.attention import SelfAttention
from counterflow.nn.trunk import Trunk
from counterflow.types import Condition

CONDITIONINGS = ["adaln", "adaln_plain", "cross", "cross_layerscale", "in_context"]


def make_trunk(conditioning, **options):
    trunk = Trunk(8, 2, 5, lambda: SelfAttention(8, 2), conditioning, n_heads=2, **options)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.normal_(0, 0.3)
    return trunk


def make_condition(batch):
    return Condition(torch.randn(batch, 5), torch.randn(batch, 3, 5), torch.tensor([[True, True, False]]).expand(batch, -1))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_time_and_one_condition_broadcast_over_the_cells(conditioning):
    trunk, tokens = make_trunk(conditioning).double(), torch.randn(4, 6, 8).double()
    one = make_condition(1)
    one = Condition(one.pooled.double(), one.tokens.double(), one.mask)
    everywhere = Condition(*(part.repeat(4, *[1] * (part.ndim - 1)) for part in one))
    expected, _ = trunk(tokens, torch.full((4,), 0.3), everywhere)
    for t in (torch.tensor(0.3), torch.tensor([0.3])):
        got, c = trunk(tokens, t, one)
        assert c.shape == (1, 1, 8)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_checkpointing_changes_neither_output_nor_gradient(conditioning):
    trunk, tokens, condition = make_trunk(conditioning), torch.randn(4, 6, 8), make_condition(4)
    results = []
    for trunk.checkpointing in (False, True):
        trunk.zero_grad()
        out, _ = trunk(tokens, torch.rand(4, generator=torch.Generator().manual_seed(0)), condition)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in trunk.parameters() if p.grad is not None)])
    assert len(results[1]) > 10
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_unknown_conditioning_is_refused_with_the_near_one():
    with pytest.raises(ConfigError, match="'cross'"):
        make_trunk("crosss")


def test_a_condition_of_the_trunks_own_width_is_taken_as_it_is():
    trunk = Trunk(8, 1, None, lambda: SelfAttention(8, 2))
    pooled = torch.randn(4, 8)
    _, c = trunk(torch.randn(4, 6, 8), torch.full((4,), 0.3), Condition(pooled, pooled[:, None], torch.ones(4, 1, dtype=torch.bool)))
    torch.testing.assert_close(c[:, 0], trunk.embed_time(torch.tensor(0.3)) + pooled)


def kept_bytes(trunk, tokens, condition):
    """What the forward pass keeps for the backward pass, weights left out."""
    weights, kept = {p.data_ptr() for p in trunk.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _ = trunk(tokens, torch.rand(len(tokens)), condition)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_checkpointing_keeps_a_fraction_of_the_memory(conditioning):
    tokens, condition = torch.randn(16, 64, 8), make_condition(16)
    everything, inputs = (kept_bytes(make_trunk(conditioning, checkpointing=wanted), tokens, condition) for wanted in (False, True))
    assert inputs < 0.2 * everything
    assert inputs >= 2 * tokens.nbytes  # the input of each of the two blocks
