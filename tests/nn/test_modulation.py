import torch

from counterflow.nn.modulation import AdaLNZero, FiLM, modulate


def test_modulate_scales_by_one_plus_scale():
    x = torch.tensor([2.0, 3.0])
    torch.testing.assert_close(modulate(x, torch.tensor(1.0), torch.tensor(0.5)), torch.tensor([4.0, 5.5]))


def test_fresh_modulation_is_zero_and_fresh_film_the_identity():
    c, x = torch.randn(4, 1, 8), torch.randn(4, 7, 6)
    for modulation in AdaLNZero(8, 6, n_sublayers=2)(c):
        assert all((part == 0).all() for part in modulation)
    assert torch.equal(FiLM(8, 6)(x, c), x)


def test_chunks_come_sublayer_by_sublayer_as_shift_scale_gate():
    layer = AdaLNZero(3, 2, n_sublayers=2)
    with torch.no_grad():
        layer.linear.bias.copy_(torch.arange(12.0))
    first, second = layer(torch.zeros(1, 1, 3))
    assert first.shift.flatten().tolist() == [0, 1]
    assert first.scale.flatten().tolist() == [2, 3]
    assert first.gate.flatten().tolist() == [4, 5]
    assert second.shift.flatten().tolist() == [6, 7]
    assert second.gate.flatten().tolist() == [10, 11]
