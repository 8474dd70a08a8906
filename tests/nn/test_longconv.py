"""The long convolution against the sum it stands for."""

import pytest
import torch

from counterflow.nn.longconv import ImplicitFilter, LongConvolution, convolve, convolve_plain

LENGTHS = (1, 2, 7, 64, 200)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", LENGTHS)
def test_by_fourier_transform_it_is_the_plain_sum(n, dtype, error):
    generator = torch.Generator().manual_seed(n)
    u, h = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((3, n, 5), (2 * n - 1, 5)))
    y = convolve_plain(u, h)
    assert (convolve(u, h) - y).abs().max() <= error * y.abs().max()


def test_the_plain_sum_is_the_formula():
    u, h = torch.randn(2, 4, 3), torch.randn(7, 3)
    for i in range(4):
        torch.testing.assert_close(convolve_plain(u, h)[:, i], sum(h[3 + i - j] * u[:, j] for j in range(4)))


def test_every_token_hears_both_sides():
    mixer, x = LongConvolution(8).double(), torch.randn(1, 20, 8).double()
    base = mixer(x)
    for j in (0, 10, 19):
        other = x.clone()
        other[:, j] += 1
        assert ((mixer(other) - base).abs().amax((0, 2)) > 1e-9).all()


def test_the_filter_is_the_same_however_far_it_is_asked_for_and_differs_by_side():
    h = ImplicitFilter(6)
    torch.testing.assert_close(h(5), h(9)[4:-4])
    assert not torch.allclose(h(5), h(5).flip(0), atol=1e-3)
    assert h(2000)[0].abs().max() < 0.1 * h(2000).abs().max()  # windows decay


@pytest.mark.parametrize("n", LENGTHS)
def test_masked_tokens_are_as_if_they_were_not_there(n, randomise):
    mixer, x = randomise(LongConvolution(8)).double(), torch.randn(2, n + 3, 8).double()
    mask = torch.ones(2, n + 3, dtype=torch.bool)
    mask[0, [0, n // 2, n + 2]] = False
    mask[1, n:] = False
    got = mixer(x, mask)
    for cell in range(2):
        torch.testing.assert_close(got[cell, mask[cell]], mixer(x[cell, mask[cell]][None])[0])
    torch.testing.assert_close(mixer(x, torch.ones(1, n + 3, dtype=torch.bool)), mixer(x))


def test_the_order_of_the_tokens_matters(randomise):
    mixer, x, order = randomise(LongConvolution(8)), torch.randn(2, 30, 8), torch.randperm(30)
    before, after = mixer(x)[:, order], mixer(x[:, order])
    assert (before - after).abs().max() > 1e-3 * before.abs().max()
