import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.ssm import BidirectionalSSM, initial_dt_bias, selective_scan_chunked, selective_scan_loop, unordered_scan

Q = 64


def scan_inputs(n_tokens, dtype, n_heads=4, n_groups=2):
    generator = torch.Generator().manual_seed(n_tokens)
    x = torch.randn(2, n_tokens, n_heads, 8, generator=generator, dtype=dtype)
    dt = torch.rand(2, n_tokens, n_heads, generator=generator, dtype=dtype) * 0.3 + 1e-3
    B, C = torch.randn(2, 2, n_tokens, n_groups, 16, generator=generator, dtype=dtype)
    return x, dt, -torch.arange(1.0, n_heads + 1, dtype=dtype), B, C


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n_tokens", [1, Q - 1, Q, Q + 1, 200, 2048])
def test_chunked_scan_equals_the_loop(n_tokens, dtype, tolerance):
    inputs = scan_inputs(n_tokens, dtype)
    slow = selective_scan_loop(*inputs)
    for chunk in (32, Q):
        fast = selective_scan_chunked(*inputs, chunk=chunk)
        assert (fast - slow).abs().max() <= tolerance * slow.abs().max()


def test_loop_is_the_closed_form_of_the_recurrence():
    x, dt, A, B, C = scan_inputs(5, torch.float64)
    y = selective_scan_loop(x, dt, A, B, C)
    i, h = 3, 2
    expected = torch.zeros(2, 8, dtype=torch.float64)
    for j in range(i + 1):
        decay = torch.exp(A[h] * dt[:, j + 1 : i + 1, h].sum(1))
        expected += (decay * (C[:, i, 1] * B[:, j, 1]).sum(-1) * dt[:, j, h])[:, None] * x[:, j, h]  # heads 2 and 3 are of group 1
    torch.testing.assert_close(y[:, i, h], expected)


def test_gradients_of_the_two_scans_agree_and_strong_decay_is_finite():
    x, dt, A, B, C = scan_inputs(70, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, 20 * dt, 5 * A, B, C)]  # log decays of hundreds: exp above the diagonal overflows
    slow = torch.autograd.grad(selective_scan_loop(*inputs).square().sum(), inputs)
    fast = torch.autograd.grad(selective_scan_chunked(*inputs).square().sum(), inputs)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scan_stays_in_fp32_under_autocast():
    inputs = scan_inputs(100, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan_chunked(*inputs)
    assert torch.equal(y, selective_scan_chunked(*inputs))


def test_unordered_scan_is_the_two_passes_with_zero_decay():
    x, dt, A, B, C = scan_inputs(40, torch.float64)
    forward = selective_scan_loop(x, dt, 0 * A, B, C)
    backward = selective_scan_loop(x.flip(1), dt.flip(1), 0 * A, B.flip(1), C.flip(1)).flip(1)
    own = (C * B).sum(-1).repeat_interleave(2, dim=-1)[..., None] * dt[..., None] * x  # in both passes
    torch.testing.assert_close(unordered_scan(x, dt, B, C), (forward + backward - own) / dt.sum(1)[:, None, :, None])


def test_dt_starts_in_its_range():
    dt = torch.nn.functional.softplus(initial_dt_bias(2000))
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 0.1001
    assert 0.4 < (dt < 1e-2).float().mean() < 0.6  # log-uniform: half of them in each decade


def test_bidirectional_is_a_forward_and_a_flipped_scan_and_skips_once():
    mixer, tokens = BidirectionalSSM(16, n_heads=4, state=8).double(), torch.randn(2, 21, 16, dtype=torch.float64)
    z, x, B, C, dt = mixer.in_proj(tokens).split([16, 16, 8, 8, 8], dim=-1)
    silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus
    x, B, C, dt = silu(x).unflatten(-1, (4, 4)), silu(B)[:, :, None], silu(C)[:, :, None], softplus(dt + mixer.dt_bias)
    A = -mixer.A_log.exp()
    y = selective_scan_loop(x, dt[..., :4], A[0], B, C)
    y = y + selective_scan_loop(x.flip(1), dt[..., 4:].flip(1), A[1], B.flip(1), C.flip(1)).flip(1)
    y = (y + mixer.D[:, None] * x).flatten(2)
    gated = y * silu(z)
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(mixer(tokens), mixer.out_proj(normed))


def test_stored_order_matters_and_no_order_does_not():
    x, order = torch.randn(2, 50, 16), torch.randperm(50)
    stored, none = BidirectionalSSM(16, 4), BidirectionalSSM(16, 4, order="none")
    torch.testing.assert_close(none(x)[:, order], none(x[:, order]), atol=1e-5, rtol=0)
    before, after = stored(x)[:, order], stored(x[:, order])
    assert (before - after).norm() > 1e-3 * before.norm()


@pytest.mark.parametrize("order", ["stored", "none"])
def test_masked_tokens_are_as_if_absent(order):
    mixer, x = BidirectionalSSM(16, 4, order=order), torch.randn(2, 10, 16)
    keep = torch.tensor([True] * 3 + [False] * 3 + [True] * 4)
    torch.testing.assert_close(mixer(x, keep.expand(2, -1))[:, keep], mixer(x[:, keep]), atol=1e-6, rtol=1e-5)


def test_unknown_order_is_refused():
    with pytest.raises(ConfigError, match="stored"):
        BidirectionalSSM(16, 4, order="store")
