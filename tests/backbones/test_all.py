"""What every backbone of ours must do, under every way of listening to the condition."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.types import Condition

S, C, B = 37, 12, 5
CASES = [
    (name, conditioning) for name in ("mlp", "dit", "set", "ssm", "longconv", "hybrid") for conditioning in ("adaln", "cross", "in_context")
]
CASES = [case for case in CASES if case != ("mlp", "in_context")] + [("dit", "adaln_plain"), ("dit", "cross_layerscale")]
every_backbone = pytest.mark.parametrize(("name", "conditioning"), CASES)


def tiny(name, conditioning, n_features=S, **kwargs):
    return build(name, (n_features,), C, conditioning=conditioning, **{"width": 32, "depth": 2, "n_heads": 2} | kwargs)


@every_backbone
def test_fresh_output_is_exactly_zero(name, conditioning, make_condition):
    velocity = tiny(name, conditioning)(torch.randn(B, S), torch.rand(B), make_condition(B))
    assert velocity.shape == (B, S)
    assert (velocity == 0).all()


@every_backbone
def test_cells_of_a_batch_are_independent(name, conditioning, randomise, make_condition):
    model, x, t, condition = randomise(tiny(name, conditioning)), torch.randn(B, S), torch.rand(B), make_condition(B)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], Condition(*(part[i : i + 1] for part in condition))) for i in range(B)])
    torch.testing.assert_close(model(x, t, condition), alone, atol=1e-6, rtol=1e-5)


@every_backbone
def test_what_is_read_matters_and_what_is_not_does_not(name, conditioning, randomise, make_condition):
    model = randomise(tiny(name, conditioning)).double()  # small random weights whisper, and rounding must not be mistaken for it
    x, t = torch.randn(B, S).double(), torch.rand(B).double()
    pooled, tokens, mask = make_condition(B)
    condition = Condition(pooled.double(), tokens.double(), mask)
    base = model(x, t, condition)

    def change(x=x, t=t, **parts):
        return ((model(x, t, condition._replace(**parts)) - base).abs().max() / base.abs().max()).item()

    real, padding = condition.tokens.clone(), condition.tokens.clone()
    real[:, 1] += 1
    padding[:, 2] += 100
    by_pooled, by_tokens = change(pooled=condition.pooled + 1), change(tokens=real)
    read, unread = (by_pooled, by_tokens) if conditioning.startswith("adaln") else (by_tokens, by_pooled)
    assert read > 1e-7
    assert unread == 0
    assert change(tokens=padding) == 0
    assert change(x=x + 0.3) > 1e-7
    assert change(t=t + 0.3) > 1e-7


@every_backbone
def test_one_time_and_one_condition_broadcast(name, conditioning, randomise, make_condition):
    model, x, one = randomise(tiny(name, conditioning)), torch.randn(B, S), make_condition(1)
    everywhere = Condition(*(part.repeat(B, *[1] * (part.ndim - 1)) for part in one))
    expected = model(x, torch.full((B,), 0.3), everywhere)
    for t in (torch.tensor(0.3), torch.tensor([0.3])):
        torch.testing.assert_close(model(x, t, one), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(x, t, everywhere), expected, atol=1e-6, rtol=1e-5)


@every_backbone
def test_gradient_reaches_every_parameter(name, conditioning, randomise, make_condition):
    model = randomise(tiny(name, conditioning))
    model(torch.randn(B, S), torch.rand(B), make_condition(B)).square().sum().backward()
    unreached = [key for key, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any() or not p.grad.isfinite().all()]
    assert unreached == []


@every_backbone
def test_bf16_autocast_is_close_to_fp32(name, conditioning, randomise, make_condition):
    model, x, t, condition = randomise(tiny(name, conditioning)), torch.randn(B, S), torch.rand(B), make_condition(B)
    exact = model(x, t, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, t, condition)
        rough.square().mean().backward()
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()


@every_backbone
def test_a_short_training_learns_a_velocity_that_depends_on_the_condition(name, conditioning, make_condition):
    model, direction = tiny(name, conditioning, n_features=8), torch.randn(C, 8) / C**0.5
    slow = {
        "in_context": (200, 2e-3),
        "cross_layerscale": (100, 5e-3),
    }  # in-context learns slowest, as in the DiT paper; a small factor first grows
    n_steps, lr = slow.get(conditioning, (60, 5e-3))
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(n_steps):
        condition = make_condition(64)
        condition = condition._replace(tokens=condition.pooled[:, None].expand(-1, 3, -1))
        x, target = torch.randn(64, 8), condition.pooled @ direction
        loss = (model(x, torch.rand(64), condition) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])  # ignoring the condition leaves it where it was


@pytest.mark.parametrize("n_features", [30, 3000])
@every_backbone
def test_small_and_large_states(name, conditioning, n_features, make_condition):
    model = tiny(name, conditioning, n_features, depth=1)
    assert model(torch.randn(2, n_features), torch.rand(2), make_condition(2)).shape == (2, n_features)


@every_backbone
def test_saved_weights_give_the_same_velocity(name, conditioning, randomise, make_condition):
    model, fresh = randomise(tiny(name, conditioning)), tiny(name, conditioning)
    fresh.load_state_dict(model.state_dict())
    inputs = torch.randn(B, S), torch.rand(B), make_condition(B)
    assert torch.equal(model(*inputs), fresh(*inputs))
