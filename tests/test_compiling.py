"""`torch.compile` of a backbone. The fast tests only trace the graphs; the slow ones let the compiler at them."""

import copy
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from counterflow import CounterFlow
from counterflow.backbones import build
from counterflow.compiling import COMPILERS, compiled
from counterflow.errors import ConfigError
from counterflow.types import Condition

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler, and there is none")
S, C, B = 30, 12, 8
SMALL = {"width": 16, "depth": 2, "n_heads": 2}


def batch(seed, n_cells=B):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n_cells, 3, C, generator=generator)
    mask = torch.rand(n_cells, 3, generator=generator) < 0.7
    mask[:, 0] = True
    return torch.randn(n_cells, S, generator=generator), torch.rand(n_cells, generator=generator), Condition(tokens.sum(1), tokens, mask)


@pytest.fixture
def graphs(monkeypatch):
    """Traces without compiling; called, tells how many graphs were traced."""
    torch._dynamo.reset()
    traced = []

    def keep(graph, example_inputs):
        traced.append(graph)
        return graph

    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_in_place(self, backend=keep, fullgraph=True, **options))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    yield lambda: len(traced)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["mlp", "dit", "set", "ssm", "longconv"])
def test_one_graph_serves_all_batches_and_is_gone_afterwards(name, graphs, randomise):
    network = randomise(build(name, (S,), C, **SMALL))
    keys = list(network.state_dict())
    with compiled(network):
        for seed in range(4):
            network(*batch(seed)).square().mean().backward()
        assert graphs() == 1
        assert list(network.state_dict()) == keys  # a wrapper would have put a prefix before them
        copy.deepcopy(network)(*batch(0, 3))
        assert graphs() == 1  # a copy, such as the running average of the weights, is not compiled
    network(*batch(0, 5))
    assert graphs() == 1
    with compiled(network, wanted=False):
        network(*batch(0, 5))
    assert graphs() == 1


def test_training_and_sampling_are_compiled_when_asked(declared, graphs):
    model = CounterFlow(declared, anchor="none")
    model.train(max_steps=3, batch_size=64, progress=False, compile=True)
    assert graphs() == 1
    names = model.vocabulary.entities[:2]
    eager = model.predict(conditions=names, n_cells=300)
    assert graphs() == 1
    compiled_cells = model.predict(conditions=names, n_cells=300, compile=True)
    assert graphs() == 2  # without gradients; two blocks of two conditions
    np.testing.assert_allclose(compiled_cells.layers["mean"], eager.layers["mean"], rtol=1e-3, atol=1e-4)


def test_without_a_compiler_it_is_said_before_anything_is_fitted(declared, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = CounterFlow(declared)
    monkeypatch.setattr(model.space, "fit", lambda *args, **kwargs: pytest.fail("the space was fitted"))
    with pytest.raises(ConfigError, match=r"C\+\+ compiler.*leave compile out"):
        model.train(max_steps=1, progress=False, compile=True)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"), compiled(model.module.backbone):
        pass


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["mlp", "dit", "set", "ssm", "longconv"])
def test_compiled_equals_eager(name, randomise):
    """Outputs and gradients; a compilation takes up to a minute."""
    network = randomise(build(name, (S,), C, **SMALL))
    results = []
    for wanted in (False, True):
        network.zero_grad()
        with compiled(network, wanted):
            outputs = [network(*batch(seed)) for seed in range(3)]
            sum(output.square().sum() for output in outputs).backward()
        results.append([*(output.detach() for output in outputs), *(p.grad.clone() for p in network.parameters())])
    for eager, fast in zip(*results, strict=True):
        assert (eager - fast).abs().max() <= 1e-4 * eager.abs().max()
