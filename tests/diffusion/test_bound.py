"""The terms of the bound against torch.distributions and numerical integration."""

from math import log, pi, sqrt

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from counterflow.diffusion.bound import bin_nll, bits_per_dimension, bound_term, gaussian_kl, prior_term
from counterflow.diffusion.respacing import respace
from counterflow.diffusion.reverse import Gaussian, posterior, reverse
from counterflow.diffusion.schedule import add_noise, linear_schedule


def normal(gaussian):
    return Normal(gaussian.mean, (gaussian.log_variance / 2).exp().expand_as(gaussian.mean))


def integrated(low, high, mean, std, n=20_001):
    """Probability of (low, high) by Simpson's rule; infinite ends are cut 12 standard deviations out."""
    low, high = max(low, mean - 12 * std), min(high, mean + 12 * std)
    if high <= low:
        return 0.0
    z = torch.linspace(low, high, n, dtype=torch.float64)
    weights = torch.ones(n, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return float(((-((z - mean) / std).square() / 2).exp() / (std * sqrt(2 * pi)) * weights).sum() * (high - low) / (n - 1) / 3)


def test_divergence_of_gaussians(generator):
    means, log_variances = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    p, q = (Gaussian(mean, log_variance) for mean, log_variance in zip(means, log_variances, strict=True))
    assert torch.allclose(gaussian_kl(p, q), kl_divergence(normal(p), normal(q)))
    assert gaussian_kl(p, p).abs().max() < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_code_length_of_a_grey_value_is_the_integral_over_its_bin(dtype, tolerance):
    for value in (-1.0, -253 / 255, 3 / 255, 127 / 255, 1.0):
        for mean, std in ((0.0, 0.5), (value + 0.02, 0.01), (value - 0.03, 0.01), (2.0, 1.0)):
            low = float("-inf") if value == -1 else value - 1 / 255
            high = float("inf") if value == 1 else value + 1 / 255
            probability = integrated(low, high, mean, std)
            gaussian = Gaussian(torch.tensor(mean, dtype=dtype), torch.tensor(2 * log(std), dtype=dtype))
            nll = bin_nll(torch.tensor(value, dtype=dtype), gaussian)
            assert float(nll) == pytest.approx(-log(max(probability, 1e-12)), rel=tolerance * 10, abs=tolerance)


def test_the_256_grey_values_have_probability_1():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.1, 0.2), (0.9, 0.5), (-3.0, 1.0)):
        spread = Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(2 * log(std), dtype=torch.float64))
        assert float((-bin_nll(values, spread)).exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.fixture
def asked(schedule, generator):
    """Images, their noised versions at four steps, and a random output of a network."""
    x0 = torch.rand(4, 2, 3, 3, generator=generator, dtype=torch.float64) * 2 - 1
    steps = torch.tensor([0, 1, 400, 999])
    x = add_noise(schedule, x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64), steps)
    return torch.randn(4, 4, 3, 3, generator=generator, dtype=torch.float64), x0, x, steps


def test_a_term_is_the_divergence_of_the_two_steps_back_in_bits(schedule, asked):
    output, x0, x, steps = asked
    found = bound_term(schedule, *asked)
    truth, guess = normal(posterior(schedule, x0, x, steps)), normal(reverse(schedule, output, x, steps))
    expected = kl_divergence(truth, guess).flatten(1).mean(1) / log(2)
    assert torch.allclose(found[1:], expected[1:])
    pixels = zip(x0[0].flatten().tolist(), guess.mean[0].flatten().tolist(), guess.stddev[0].flatten().tolist(), strict=True)
    nats = [-log(max(integrated(value - 1 / 255, value + 1 / 255, mean, std), 1e-12)) for value, mean, std in pixels]
    assert float(found[0]) == pytest.approx(sum(nats) / len(nats) / log(2), rel=1e-8)


def test_the_priors_term(schedule, asked):
    x0 = asked[1]
    end = Normal(schedule.A[-1].sqrt() * x0, (1 - schedule.A[-1]).sqrt().expand_as(x0))
    expected = kl_divergence(end, Normal(torch.zeros_like(x0), torch.ones_like(x0))).flatten(1).mean(1) / log(2)
    assert torch.allclose(prior_term(schedule, x0), expected, rtol=1e-9, atol=1e-12)


def test_the_bound_is_the_sum_of_its_terms(gaussian, generator):
    """Of a schedule that stops before all is noise, so that the prior's term counts."""
    short = linear_schedule(20)
    x0 = gaussian.draw(5, generator)
    found = bits_per_dimension(knows(gaussian), x0, short, torch.Generator().manual_seed(1))
    expected, again = prior_term(short, x0), torch.Generator().manual_seed(1)
    assert expected.min() > 0.1
    for i in range(20):
        steps = torch.full((5,), i)
        x = add_noise(short, x0, torch.randn(x0.shape, generator=again).to(x0), steps)
        expected = expected + bound_term(short, knows(gaussian)(x, short.times[steps].to(x)), x0, x, steps)
    assert torch.allclose(found, expected)


def test_with_the_exact_denoiser_the_bound_is_close_to_the_entropy(schedule, gaussian, generator):
    found = bits_per_dimension(knows(gaussian), gaussian.draw(400, generator), respace(schedule, 50), torch.Generator().manual_seed(1))
    entropy = float(Normal(0.0, gaussian.spread).entropy()) / log(2) + log(255 / 2) / log(2)  # of a grey value, in bits
    assert entropy < float(found.mean()) < entropy + 0.2


def knows(gaussian):
    """The exact noise, and the largest variance."""
    return lambda x, time: torch.cat([gaussian.noise(x, time), torch.ones_like(x)], 1)
