"""Large batches in chunks: the same loss and gradients, with a bounded part of the memory."""

import subprocess
import sys

import pytest
import torch

from counterflow import memory
from counterflow.backbones import build
from counterflow.types import Condition


def randomised(name, **kwargs):
    torch.manual_seed(0)
    network = build(name, (30,), 8, **kwargs)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture
def batch():
    torch.manual_seed(1)
    pooled = torch.randn(50, 8, requires_grad=True)
    return torch.randn(50, 30), torch.rand(50), Condition(pooled, pooled[:, None] * 2, torch.ones(50, 1, dtype=torch.bool))


@pytest.mark.parametrize("name", ["mlp", "dit", "set", "ssm", "longconv"])
def test_chunks_give_the_same_output_and_gradients(name, batch, monkeypatch):
    network = randomised(name, width=16, depth=2)
    x, t, condition = batch
    whole = network(x, t, condition)
    expected = torch.autograd.grad(whole.square().sum(), [*network.parameters(), condition.pooled])
    per_cell = memory.kept_per_cell(network, x, t, condition)
    monkeypatch.setattr(memory, "MOST_KEPT", 7 * per_cell)  # 8 chunks, the last of one cell
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    chunked = memory.in_chunks(network, x, t, condition, per_cell)
    assert len(calls) == 8
    handle.remove()
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(chunked.square().sum(), [*network.parameters(), condition.pooled])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_what_is_kept_grows_with_the_tokens_and_is_bounded_by_chunks(batch, monkeypatch):
    network = randomised("dit", width=16, depth=2, genes_per_token=1)
    x, t, condition = batch
    per_cell = memory.kept_per_cell(network, x, t, condition)
    assert per_cell > 2 * memory.kept_per_cell(randomised("dit", width=16, depth=2, genes_per_token=5), x, t, condition)
    total, chunked = [], []
    for collected, limit in ((total, 10**12), (chunked, 5 * per_cell)):
        monkeypatch.setattr(memory, "MOST_KEPT", limit)
        with torch.autograd.graph.saved_tensors_hooks(lambda v, c=collected: c.append(v.nbytes) or v, lambda v: v):
            memory.in_chunks(network, x, t, condition, per_cell)
    assert sum(chunked) < 0.2 * sum(total)
    assert sum(total) == pytest.approx(50 * per_cell, rel=0.6)


def test_small_batches_are_not_chunked(batch):
    network = randomised("mlp", width=16, depth=2)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    memory.in_chunks(network, *batch, per_cell=1000)
    assert len(calls) == 1


PEAKS = """
import torch
from counterflow import memory
torch.ones(100_000_000).sum()
large = memory.peak_memory()
memory.forget_peak_memory()
torch.ones(1000).sum()
small = memory.peak_memory()
torch.ones(75_000_000).sum()
print(large, small, memory.peak_memory())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget the peak of a process")
def test_the_peak_is_that_of_the_last_piece_of_work():
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    large, small, after = map(int, run.stdout.split())
    assert small < large - 200 * 2**20
    assert after > small + 200 * 2**20
