"""The causal Mamba mixers against their recurrences, written out. Independent implementations are in tests/parity."""

import pytest
import torch
import torch.nn.functional as F

from counterflow.errors import CheckpointError, ConfigError
from counterflow.nn.mamba import Mamba2Mixer, MambaMixer
from counterflow.nn.mamba_weights import from_reference, to_reference

N, WIDTH = 11, 8
MIXERS = {
    "mamba2": lambda: Mamba2Mixer(WIDTH, head_width=4, state=6, n_groups=2, dt_limits=(0.4, 1.0), chunk=4, bias=True),
    "mamba": lambda: MambaMixer(WIDTH, state=6, dt_rank=3),
}
every_mixer = pytest.mark.parametrize("kind", MIXERS)


def make(kind):
    """In fp64, no weight as it was."""
    mixer = MIXERS[kind]().double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 0.5)
    return mixer


def tokens():
    return torch.randn(2, N, WIDTH, dtype=torch.float64)


def convolved(x, conv):
    """The token itself and the three before it, channel by channel."""
    weight, bias = conv.weight[:, 0], conv.bias
    reads = [bias + sum(weight[:, 3 - back] * x[:, i - back] for back in range(4) if i >= back) for i in range(x.shape[1])]
    return F.silu(torch.stack(reads, dim=1))


def test_mamba2_is_its_recurrence():
    mixer, u = make("mamba2"), tokens()
    z, xBC, dt = mixer.in_proj(u).split([16, 16 + 2 * 2 * 6, 4], dim=-1)
    x, B, C = convolved(xBC, mixer.conv).split([16, 12, 12], dim=-1)
    dt = F.softplus(dt + mixer.dt_bias)
    assert (dt < 0.4).any() and (dt > 1).any()  # both limits bite
    dt, y = dt.clamp(0.4, 1.0), torch.zeros_like(x)
    for head in range(4):
        here, group = slice(4 * head, 4 * head + 4), slice(6 * (head // 2), 6 * (head // 2) + 6)
        state = torch.zeros(2, 6, 4, dtype=torch.float64)
        for i in range(N):
            decay = torch.exp(-dt[:, i, head] * mixer.A_log[head].exp())[:, None, None]
            state = decay * state + B[:, i, group, None] * (dt[:, i, head, None] * x[:, i, here])[:, None]
            y[:, i, here] = (C[:, i, group, None] * state).sum(1) + mixer.D[head] * x[:, i, here]
    halves = (y * F.silu(z)).unflatten(-1, (2, 8))
    normed = (halves / (halves.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * mixer.norm.weight
    torch.testing.assert_close(mixer(u), mixer.out_proj(normed))


def test_mamba1_is_its_recurrence():
    mixer, u = make("mamba"), tokens()
    x, z = mixer.in_proj(u).chunk(2, dim=-1)
    x = convolved(x, mixer.conv)
    low, B, C = mixer.x_proj(x).split([3, 6, 6], dim=-1)
    dt = F.softplus(mixer.dt_proj(low))
    state, y = torch.zeros(2, 16, 6, dtype=torch.float64), []
    for i in range(N):
        decay = torch.exp(-dt[:, i, :, None] * mixer.A_log.exp())
        state = decay * state + (dt[:, i] * x[:, i])[..., None] * B[:, i, None]
        y.append((state * C[:, i, None]).sum(-1) + mixer.D * x[:, i])
    torch.testing.assert_close(mixer(u), mixer.out_proj(torch.stack(y, dim=1) * F.silu(z)))


@every_mixer
def test_no_token_sees_a_later_one(kind):
    mixer, u = make(kind), tokens()
    changed = u.clone()
    changed[:, 6] += 1
    assert torch.equal(mixer(u)[:, :6], mixer(changed)[:, :6])
    assert ((mixer(u) - mixer(changed)).abs().amax((0, 2))[6:] > 1e-6).all()


@every_mixer
def test_tokens_masked_at_the_ends_are_as_if_absent(kind):
    mixer, u = make(kind), tokens()
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[:, :3] = mask[:, -2:] = False
    torch.testing.assert_close(mixer(u, mask)[:, 3:-2], mixer(u[:, 3:-2]))
    assert not torch.allclose(mixer(u)[:, 3:-2], mixer(u[:, 3:-2]))


@every_mixer
def test_masked_tokens_between_others_leave_the_state_as_it_is(kind):
    mixer, u = make(kind), tokens()
    mixer.conv.weight.data[..., :-1] = 0  # the convolution does see the gap
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[:, 4:7] = False
    torch.testing.assert_close(mixer(u, mask)[mask], mixer(u[:, mask[0]]).flatten(0, 1))


@every_mixer
def test_bf16_autocast_is_close_to_fp32(kind):
    mixer, u = make(kind).float(), tokens().float()
    exact = mixer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mixer(u)
    rough.float().square().mean().backward()
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@every_mixer
def test_weights_go_to_the_reference_and_back_bit_for_bit(kind):
    weights = make(kind).state_dict()
    theirs = to_reference(weights)
    assert "conv1d.weight" in theirs and "conv.weight" not in theirs
    back = from_reference(theirs)
    assert list(back) == list(weights) and all(torch.equal(back[name], weights[name]) for name in weights)
    MIXERS[kind]().double().load_state_dict(back)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights | {"backbone.layers.0.mixer.D": weights["D"]}, "'backbone' is no part .* without a prefix"),
        (lambda weights: {name: w for name, w in weights.items() if name != "A_log"}, "'A_log' is missing"),
        (lambda weights: {}, "there is nothing"),
        (lambda weights: from_reference(weights), "did you mean 'conv1d'"),
    ],
)
@every_mixer
def test_weights_of_something_else_are_refused(kind, change, message):
    with pytest.raises(CheckpointError, match=message):
        from_reference(change(to_reference(make(kind).state_dict())))


def test_numbers_that_do_not_fit_are_said():
    with pytest.raises(ConfigError, match="heads of 5 channels"):
        Mamba2Mixer(8, head_width=5)
    with pytest.raises(ConfigError, match="3 groups"):
        Mamba2Mixer(8, head_width=4, n_groups=3)
