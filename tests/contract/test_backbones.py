"""What any backbone promises, ours or yours: `pytest tests/contract --backbone mylab.retnet:RetNet`.

Weights are randomised first; a network that starts at zero would keep every promise.
"""

import copy

import pytest
import torch

from counterflow.backbones import build
from counterflow.types import Condition

B, C = 6, 16


@pytest.fixture
def network(backbone, conditioning, backbone_kwargs, state_shape, randomise):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(build(backbone, state_shape, C, conditioning=conditioning, **backbone_kwargs)).eval()


@pytest.fixture
def inputs(state_shape):
    """States, times, and conditions of three tokens: two perturbations in half of the cells, one (and padding) in the others."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(B, 3, dtype=torch.bool)
    mask[::2, 2] = False
    condition = Condition(torch.randn(B, C, generator=generator), torch.randn(B, 3, C, generator=generator), mask)
    return torch.randn(B, *state_shape, generator=generator), torch.rand(B, generator=generator), condition


def rows(inputs, chosen):
    x, t, condition = inputs
    return x[chosen], t[chosen], Condition(*(part[chosen] for part in condition))


def doubled(inputs):
    x, t, condition = inputs
    return x.double(), t.double(), Condition(condition.pooled.double(), condition.tokens.double(), condition.mask)


def relative(change, base):
    return ((change - base).abs().max() / base.abs().max()).item()


def test_a_velocity_has_the_shape_and_type_of_the_state(network, inputs, state_shape):
    velocity = network(*inputs)
    assert velocity.shape == (B, *state_shape) and velocity.dtype == torch.float32
    assert velocity.isfinite().all() and (velocity != 0).any()


def test_the_condition_matters(network, inputs):
    network, (x, t, condition) = network.double(), doubled(inputs)  # random weights whisper: rounding must not be mistaken for it
    base = network(x, t, condition)
    assert relative(network(x, t, condition._replace(pooled=condition.pooled + 1, tokens=condition.tokens + 1)), base) > 1e-6


def test_state_and_time_matter(network, inputs):
    network, (x, t, condition) = network.double(), doubled(inputs)
    base = network(x, t, condition)
    assert relative(network(x + 0.3, t, condition), base) > 1e-6
    assert relative(network(x, t / 2, condition), base) > 1e-6


def test_padding_does_not_matter(network, inputs):
    x, t, condition = inputs
    other = torch.where(condition.mask[..., None], condition.tokens, 100.0)
    torch.testing.assert_close(network(x, t, condition._replace(tokens=other)), network(x, t, condition))


def test_cells_of_a_batch_are_independent(network, inputs):
    together = network(*inputs)
    alone = torch.cat([network(*rows(inputs, slice(i, i + 1))) for i in range(B)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(network(*rows(inputs, order)), together[order], atol=1e-5, rtol=1e-4)


def test_one_call_is_like_the_other_and_leaves_its_arguments_alone(network, inputs):
    before = copy.deepcopy(inputs)
    first = network(*inputs)
    assert torch.equal(first, network(*inputs))
    assert torch.equal(inputs[0], before[0]) and torch.equal(inputs[1], before[1])
    assert all(torch.equal(now, then) for now, then in zip(inputs[2], before[2], strict=True))


def test_bf16_autocast_runs_forward_and_backward(network, inputs):
    exact = network(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(*inputs)
    rough.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert relative(rough.float(), exact) < 0.1


def test_the_gradient_reaches_the_condition(network, inputs):
    """The condition encoder learns through it."""
    x, t, condition = inputs
    pooled, tokens = condition.pooled.clone().requires_grad_(), condition.tokens.clone().requires_grad_()
    network(x, t, Condition(pooled, tokens, condition.mask)).square().sum().backward()
    assert any(part.grad is not None and (part.grad != 0).any() for part in (pooled, tokens))


def test_saved_weights_give_the_same_velocity(backbone, conditioning, backbone_kwargs, state_shape, network, inputs):
    fresh = build(backbone, state_shape, C, conditioning=conditioning, **backbone_kwargs).eval()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(*inputs), network(*inputs))
