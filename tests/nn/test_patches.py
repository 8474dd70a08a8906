import math

import pytest
import torch
from torch import nn

from counterflow.errors import ConfigError
from counterflow.nn.patches import PatchHead, PatchTokenizer


def test_a_token_is_the_strided_convolution_of_its_patch_plus_its_position():
    tokenizer, x = PatchTokenizer((3, 4, 6), 8, 2), torch.randn(5, 3, 4, 6)
    convolution = nn.Conv2d(3, 8, kernel_size=2, stride=2)
    with torch.no_grad():
        convolution.weight.copy_(tokenizer.proj.weight.view(8, 3, 2, 2))
        convolution.bias.copy_(tokenizer.proj.bias.normal_())
    expected = convolution(x).flatten(2).transpose(1, 2) + tokenizer.positions  # row-major
    torch.testing.assert_close(tokenizer(x), expected)


def test_the_head_writes_a_patch_as_row_column_channel():
    head = PatchHead((3, 4, 6), 12, 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(12))
    head.norm = nn.Identity()
    tokens = torch.randn(5, 6, 12)
    image = head(tokens, torch.zeros(1, 1, 12))
    for token, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        for p in range(2):
            for q in range(2):
                written = image[:, :, 2 * row + p, 2 * column + q]
                assert torch.equal(written, tokens[:, token, 3 * (2 * p + q) : 3 * (2 * p + q) + 3])


def test_unused_channels_are_computed_and_left_out():
    used, all_of_them = PatchHead((3, 4, 4), 8, 2, unused_channels=2), PatchHead((5, 4, 4), 8, 2)
    nn.init.normal_(used.linear.weight)
    all_of_them.load_state_dict(used.state_dict())
    tokens, c = torch.randn(2, 4, 8), torch.randn(2, 1, 8)
    assert torch.equal(used(tokens, c), all_of_them(tokens, c)[:, :3])


def test_a_fresh_head_is_exactly_zero():
    assert (PatchHead((3, 4, 6), 8, 2)(torch.randn(2, 6, 8), torch.randn(2, 1, 8)) == 0).all()


def test_fixed_positions_are_the_column_then_the_row():
    positions = PatchTokenizer((1, 6, 8), 16, 2).positions.view(3, 4, 16)
    for row, column in ((0, 0), (2, 1), (1, 3)):
        for k in range(4):
            omega = 10_000 ** (-k / 4)
            for half, index in ((0, column), (8, row)):
                assert positions[row, column, half + k].item() == pytest.approx(math.sin(index * omega), abs=1e-7)
                assert positions[row, column, half + 4 + k].item() == pytest.approx(math.cos(index * omega), abs=1e-7)


def test_one_dimensional_positions_are_the_index_in_reading_order():
    positions = PatchTokenizer((1, 6, 8), 16, 2, "sincos_1d").positions
    assert positions.shape == (12, 16)
    assert positions[7, 3].item() == pytest.approx(math.sin(7 * 10_000 ** (-3 / 8)), abs=1e-6)
    assert positions[7, 11].item() == pytest.approx(math.cos(7 * 10_000 ** (-3 / 8)), abs=1e-6)


def test_fixed_positions_are_saved_and_not_trained_and_learned_ones_are_both():
    trained = {
        positions: "positions" in dict(PatchTokenizer((1, 4, 4), 8, 2, positions).named_parameters())
        for positions in ("sincos_2d", "sincos_1d", "learned")
    }
    assert trained == {"sincos_2d": False, "sincos_1d": False, "learned": True}
    assert all("positions" in PatchTokenizer((1, 4, 4), 8, 2, positions).state_dict() for positions in trained)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="4 x 6 cannot be cut into patches of 4 x 4"):
        PatchTokenizer((1, 4, 6), 8, 4)
    with pytest.raises(ConfigError, match="'learned'"):
        PatchTokenizer((1, 4, 4), 8, 2, "learnd")
    with pytest.raises(ConfigError, match="multiple of 4"):
        PatchTokenizer((1, 4, 4), 10, 2)
