import pytest
import torch

from counterflow.nn.s6 import s6_scan_chunked, s6_scan_loop

Q = 32


def scan_inputs(n_tokens, dtype):
    generator = torch.Generator().manual_seed(n_tokens)
    x = torch.randn(2, n_tokens, 5, generator=generator, dtype=dtype)
    dt = torch.rand(2, n_tokens, 5, generator=generator, dtype=dtype) * 0.1 + 1e-3
    B, C = torch.randn(2, 2, n_tokens, 4, generator=generator, dtype=dtype)
    return x, dt, -torch.rand(5, 4, generator=generator, dtype=dtype), B, C


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n_tokens", [1, Q - 1, Q, Q + 1, 200, 2048])
def test_chunked_scan_equals_the_loop(n_tokens, dtype, tolerance):
    inputs = scan_inputs(n_tokens, dtype)
    slow = s6_scan_loop(*inputs)
    for chunk in (7, Q):
        assert (s6_scan_chunked(*inputs, chunk=chunk) - slow).abs().max() <= tolerance * slow.abs().max()


def test_loop_is_the_closed_form_of_the_recurrence():
    x, dt, A, B, C = scan_inputs(6, torch.float64)
    i, d = 4, 3
    expected = torch.zeros(2, dtype=torch.float64)
    for j in range(i + 1):
        decay = torch.exp(A[d] * dt[:, j + 1 : i + 1, d].sum(1)[:, None])  # one per coordinate of the state
        expected += (C[:, i] * decay * B[:, j]).sum(-1) * dt[:, j, d] * x[:, j, d]
    torch.testing.assert_close(s6_scan_loop(x, dt, A, B, C)[:, i, d], expected)


def test_gradients_of_the_two_scans_agree_and_strong_decay_is_finite():
    x, dt, A, B, C = scan_inputs(70, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, 100 * dt, 100 * A, B, C)]
    slow = torch.autograd.grad(s6_scan_loop(*inputs).square().sum(), inputs)
    fast = torch.autograd.grad(s6_scan_chunked(*inputs).square().sum(), inputs)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scan_stays_in_fp32_under_autocast():
    inputs = scan_inputs(100, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(s6_scan_chunked(*inputs), s6_scan_chunked(*inputs).float())
        y = s6_scan_chunked(*inputs)
    assert torch.equal(y, s6_scan_chunked(*inputs))
