import math

import pytest
import torch

from counterflow.nn.embed import TimeEmbedding, sinusoidal_features


def test_features_are_cosines_then_sines_at_the_reference_frequencies():
    features = sinusoidal_features(torch.tensor([7.0], dtype=torch.float64), 256)[0]
    for k in (0, 1, 64, 127):
        omega = 10_000 ** (-k / 128)  # the divisor is half, not half - 1
        assert features[k].item() == pytest.approx(math.cos(7 * omega), abs=1e-12)
        assert features[128 + k].item() == pytest.approx(math.sin(7 * omega), abs=1e-12)


def test_a_closed_table_ends_at_the_longest_period():
    features = sinusoidal_features(torch.tensor([7.0], dtype=torch.float64), 256, closed=True)[0]
    for k in (0, 64, 127):
        assert features[k].item() == pytest.approx(math.cos(7 * 10_000 ** (-k / 127)), abs=1e-12)
    embed = TimeEmbedding(16, closed=True)
    assert not torch.allclose(embed(torch.tensor([0.9])), embed.mlp(sinusoidal_features(torch.tensor([900.0]), 256)), atol=1e-3)


def test_scaled_times_are_told_apart_and_unscaled_ones_are_not():
    times = torch.tensor([0.50, 0.51])
    scaled = sinusoidal_features(1000 * times, 256)
    unscaled = sinusoidal_features(times, 256)
    assert (scaled[0] - scaled[1]).norm() > 20 * (unscaled[0] - unscaled[1]).norm()


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.3])])
def test_a_single_time_is_one_row(t):
    embed = TimeEmbedding(16)
    row = embed(t)
    assert row.shape == (1, 16)
    torch.testing.assert_close(embed(torch.full((5,), 0.3)), row.expand(5, -1))


def test_half_precision_times_are_scaled_in_fp32():
    t = torch.tensor([0.75390625], dtype=torch.bfloat16)  # exact in bf16; 1000 times it is not
    embed = TimeEmbedding(16)
    torch.testing.assert_close(embed(t), embed(t.float()))
