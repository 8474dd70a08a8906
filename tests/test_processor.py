"""Threads and products change how fast a network is, never what it is; and everything is put back."""

import numpy as np
import pytest
import torch

from counterflow import ConfigError, CounterFlow
from counterflow.processor import at_work, onednn_is_exact, quick_products, threads_for


def test_a_small_network_gets_one_thread_and_a_large_one_what_was_set():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(torch.nn.Linear(10, 10)):
            assert torch.get_num_threads() == 1
        with threads_for(torch.nn.Linear(1000, 1001)):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_quick_products_are_products_in_fp32_and_the_setting_is_put_back():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 384, generator=generator), torch.randn(384, 256, generator=generator)
    exact = a.double() @ b.double()
    setting = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), quick_products():
        error = (a @ b - exact).abs().max() / exact.abs().max()
        raise ZeroDivisionError
    assert error < 2e-6  # bfloat16 would be at 1e-3
    assert torch.backends.mkldnn.matmul.fp32_precision == setting


@pytest.mark.parametrize("can", [{}, {"avx512_bw": True, "amx_bf16": True}, {"avx512_bw": False, "amx_bf16": False}, None])
def test_nothing_is_changed_where_onednn_would_round_or_the_processor_does_not_say(monkeypatch, can):
    monkeypatch.setattr(torch.cpu, "get_capabilities", (lambda: can) if can is not None else None, raising=False)
    if can is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not onednn_is_exact()
    setting = torch.backends.mkldnn.matmul.fp32_precision
    with at_work(torch.nn.Linear(2, 2)):
        assert torch.backends.mkldnn.matmul.fp32_precision == setting


class Asks(torch.nn.Module):
    """Takes down the shapes it is asked with; a velocity that depends on all it reads."""

    def __init__(self, state_shape, condition_dim):
        super().__init__()
        self.layer = torch.nn.Linear(condition_dim + 1, state_shape[0])
        self.asked = []

    def forward(self, x, t, condition):
        self.asked.append((len(t), len(condition.pooled)))
        return self.layer(torch.cat([condition.pooled.expand(len(t), -1), t.expand(len(condition.pooled))[:, None]], 1)) - x


class AsksOnce(Asks):
    broadcasts = True


def test_a_network_that_broadcasts_is_asked_once_for_all_cells_and_answers_the_same(declared):
    model = CounterFlow(declared, backbone=Asks, anchor="none")
    model.train(max_steps=2, progress=False)
    per_cell = model.predict(None, "G000", n_cells=40)
    assert set(model.module.backbone.asked[-10:]) == {(256, 256)}
    once = AsksOnce(model.space.state_shape, model.module.encoder.width)
    once.load_state_dict(model.module.backbone.state_dict())
    model.module.backbone = once
    together = model.predict(None, "G000", n_cells=40)
    assert set(once.asked) == {(1, 1)}  # not once per cell
    np.testing.assert_allclose(together.layers["mean"], per_cell.layers["mean"], rtol=1e-4)


def test_bfloat16_is_close_to_fp32_and_another_name_is_refused(declared, randomise):
    model = CounterFlow(declared, anchor="none")
    model.train(max_steps=2, progress=False)
    randomise(model.module.backbone)
    exact = model.predict(None, "G000", decoder="sample")
    rough = model.predict(None, "G000", decoder="sample", precision="bf16-mixed")
    difference = np.abs(np.log(rough.layers["mean"] + 1e-3) - np.log(exact.layers["mean"] + 1e-3))
    assert 0 < difference.mean() < 0.02
    assert rough.uns["counterflow"]["sampling"]["precision"] == "bf16-mixed"
    with pytest.raises(ConfigError, match="precision='bf16' is unknown"):
        model.predict(None, "G000", precision="bf16")
