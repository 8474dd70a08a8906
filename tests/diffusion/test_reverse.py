import pytest
import torch

from counterflow.diffusion.reverse import log_variance, noise_hat, posterior, reverse, split_output, x0_hat
from counterflow.diffusion.schedule import add_noise, at
from counterflow.errors import ConfigError

STEPS = torch.tensor([1, 30, 500, 999])


@pytest.fixture
def images(generator):
    return torch.randn(2, 4, 2, 3, 3, generator=generator, dtype=torch.float64)


def test_the_posterior_is_bayes_rule(schedule, images):
    """q(x_{i-1} | x_i, x0) as the product of two Gaussians in x_{i-1}, by their precisions."""
    x0, x = images
    mean, log_variance = posterior(schedule, x0, x, STEPS)
    beta, A_before = at(schedule.betas, STEPS, x), at(schedule.A_before, STEPS, x)
    precision = (1 - beta) / beta + 1 / (1 - A_before)
    expected = ((1 - beta).sqrt() / beta * x + A_before.sqrt() / (1 - A_before) * x0) / precision
    assert torch.allclose(mean, expected, rtol=1e-9) and torch.allclose(log_variance.exp(), 1 / precision, rtol=1e-9)


def test_noise_and_clean_image_say_the_same(schedule, images):
    x0, noise = images
    x = add_noise(schedule, x0, noise, STEPS)
    assert torch.allclose(x0_hat(schedule, x, noise, STEPS), x0, atol=1e-9)
    assert torch.allclose(noise_hat(schedule, x, x0, STEPS), noise, atol=1e-9)


def test_the_learned_variance_runs_from_the_smallest_to_the_largest_and_beyond(schedule, images):
    x = images[0]
    small, large = schedule.log_posterior_variance[STEPS], schedule.betas[STEPS].log()
    for v, expected in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2), (3.0, 2 * large - small)):
        found = log_variance(schedule, torch.full_like(x, v), x, STEPS)
        assert torch.allclose(found, expected.reshape(-1, 1, 1, 1).expand_as(x))
    assert torch.equal(log_variance(schedule, None, x, STEPS, "small").flatten(), small)
    assert torch.equal(log_variance(schedule, None, x, STEPS, "large").flatten(), large)


def test_a_network_that_knows_the_noise_gives_the_posterior(schedule, images):
    x0, noise = images
    x = add_noise(schedule, x0, noise, STEPS)
    mean, log_variance = reverse(schedule, torch.cat([noise, -torch.ones_like(noise)], 1), x, STEPS)
    truth = posterior(schedule, x0, x, STEPS)
    assert torch.allclose(mean, truth.mean, atol=1e-9) and torch.allclose(log_variance, truth.log_variance.expand_as(x))


def test_clipping_keeps_the_clean_image_in_range(schedule, images):
    x = images[1]
    output = torch.zeros_like(x)
    mean, _ = reverse(schedule, output, x, STEPS, variance="small", clip=1.0)
    x0 = x0_hat(schedule, x, output, STEPS)
    assert x0.abs().max() > 1 and torch.equal(mean, posterior(schedule, x0.clamp(-1, 1), x, STEPS).mean)


def test_what_an_output_may_be(schedule, images):
    x = images[0]
    assert split_output(x, x)[1] is None
    noise, v = split_output(torch.cat([x, 2 * x], 1), x)
    assert torch.equal(noise, x) and torch.equal(v, 2 * x)
    with pytest.raises(ConfigError, match="gave 3 channels for images of 2"):
        split_output(x[:, :1].repeat(1, 3, 1, 1), x)
    with pytest.raises(ConfigError, match="gives no variance"):
        reverse(schedule, x, x, STEPS)
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        reverse(schedule, x, x, STEPS, variance="smal")
