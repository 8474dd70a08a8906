"""Under bf16 autocast some steps stay in fp32. Each test also does the step in bf16, to show that it matters."""

import pytest
import torch
import torch.nn.functional as F

from counterflow.nn.attention import SelfAttention, attend
from counterflow.nn.blocks import AdaLNBlock, CrossBlock, InContextBlock
from counterflow.nn.embed import TimeEmbedding, sinusoidal_features
from counterflow.nn.ssm import GatedRMSNorm, selective_scan_chunked, selective_scan_loop


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def relative(rough, exact):
    return ((rough.float() - exact.float()).norm() / exact.float().norm()).item()


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


CONTEXT = torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)
BLOCKS = {
    "adaln": (lambda: AdaLNBlock(16, SelfAttention(16, 2)), (torch.randn(2, 1, 16),)),
    "cross": (lambda: CrossBlock(16, SelfAttention(16, 2), 2), (torch.randn(2, 1, 16), *CONTEXT)),
    "in_context": (lambda: InContextBlock(16, SelfAttention(16, 2)), (torch.ones(2, 5, dtype=torch.bool),)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_norms_and_the_residual_stream(name):
    """Tokens far from zero: their differences, which the norm brings out, are below the resolution of bf16."""
    make, signals = BLOCKS[name]
    block, x = randomised(make()), 300 + torch.randn(2, 5, 16)
    exact = block(x, *signals) - x
    with autocast():
        after = block(x, *signals)
        rounded = block(x.bfloat16().float(), *signals) - x.bfloat16().float()
    assert after.dtype == torch.float32
    assert relative(after - x, exact) < 0.03
    assert relative(rounded, exact) > 0.1


def test_the_softmax():
    """Large logits: a rounding of theirs to bf16 is a factor in the weights."""
    q, k, v = (scale * torch.randn(1, 2, 40, 16) for scale in (6, 6, 1))
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = attend(q.double(), k.double(), v.double(), None)
    logits = (q @ k.mT) / 4
    rounded = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    with autocast():
        kept = attend(q, k, v, None)
    assert relative(kept, exact) < 0.005
    assert relative(rounded, exact) > 0.01


def test_the_states_of_a_scan():
    """A state that forgets slowly: in bf16 what is written is lost beside what is there."""
    x, dt = 1 + torch.randn(1, 1000, 2, 4), torch.full((1, 1000, 2), 0.01)
    B, C = 1 + torch.randn(2, 1, 1000, 1, 8)
    inputs = [tensor.bfloat16().float() for tensor in (x, dt, -torch.tensor([0.1, 0.2]), B, C)]
    exact = selective_scan_loop(*(tensor.double() for tensor in inputs))
    with autocast():
        kept = selective_scan_chunked(*(tensor.bfloat16() for tensor in inputs))
    state, reads = torch.zeros(1, 2, 8, 4, dtype=torch.bfloat16), []
    x, dt, A, B, C = (tensor.bfloat16() for tensor in inputs)
    for i in range(1000):
        written = B[:, i, 0, None, :, None] * (dt[:, i, :, None] * x[:, i])[:, :, None]
        state = torch.exp(dt[:, i] * A)[..., None, None] * state + written
        reads.append((C[:, i, 0, None, :, None] * state).sum(2))
    assert kept.dtype == torch.float32
    assert relative(kept, exact) < 1e-5
    assert relative(torch.stack(reads, dim=1), exact) > 0.05


def test_the_gated_norm_of_a_scan():
    """What it gives is rounded once, by the projection after it, and not three times on the way."""
    norm, y, z = GatedRMSNorm(4096), 1 + 0.1 * torch.randn(3, 2, 4096), torch.randn(3, 2, 4096)
    y, z = y.bfloat16(), z.bfloat16()
    gated = y.double() * F.silu(z.double())
    exact = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    with autocast():
        kept = norm(y, z)
    rounded = (y * F.silu(z)) / ((y * F.silu(z)).square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert kept.dtype == torch.float32
    assert relative(kept, exact) < 1e-5
    assert relative(rounded, exact) > 1e-3


def test_the_time_embedding():
    """Two times a thousandth of a step apart: in bf16 they are one, or rounding is all that tells them apart."""
    embed, times = randomised(TimeEmbedding(32)), torch.tensor([0.5, 0.500001])
    exact = embed(times)
    with autocast():
        assert torch.equal(embed(times), exact)
        rounded = embed.mlp(sinusoidal_features(1000 * times, 256))
    moved = exact[1] - exact[0]
    assert moved.norm() > 0
    assert relative(rounded[1] - rounded[0], moved) > 0.5
