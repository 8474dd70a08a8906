"""Whole chains on Gaussian images, whose denoiser is known. That each step is the right one is shown in tests/parity."""

import pytest
import torch

from counterflow.diffusion.ddim import ddim
from counterflow.diffusion.ddpm import ddpm
from counterflow.diffusion.respacing import respace
from counterflow.errors import ConfigError


def start(generator, n=2000):
    return torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)


def test_ddpm_ends_in_the_distribution_of_the_images(schedule, gaussian, generator):
    x = ddpm(gaussian.noise, start(generator, 500), schedule, generator, variance="small")
    assert abs(x.mean() - gaussian.mean) < 0.01 and abs(x.std() - gaussian.spread) < 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_ends_in_the_distribution_of_the_images(schedule, gaussian, generator, eta):
    x = ddim(gaussian.noise, start(generator, 500), schedule, generator, eta=eta)
    assert abs(x.mean() - gaussian.mean) < 0.01 and abs(x.std() - gaussian.spread) < 0.01


def test_ddim_without_noise_is_the_known_map(schedule, gaussian, generator):
    """The deterministic limit moves every quantile to its own: x -> mean + spread x, up to the steps' size."""
    x = start(generator, 20)
    assert torch.allclose(ddim(gaussian.noise, x, schedule), gaussian.mean + gaussian.spread * x, atol=0.02)


def test_ddim_with_eta_1_is_ddpm_with_the_posteriors_variance(schedule, gaussian, generator):
    few, x = respace(schedule, 20), start(generator, 20)
    a = ddpm(gaussian.noise, x, few, torch.Generator().manual_seed(1), variance="small")
    b = ddim(gaussian.noise, x, few, torch.Generator().manual_seed(1), eta=1.0)
    assert torch.allclose(a, b, atol=1e-9)


def test_the_network_is_asked_at_the_original_times(schedule, generator):
    asked = []

    def denoiser(x, time):
        asked.append(time)
        return torch.zeros_like(x)

    x = torch.zeros(3, 1, 2, 2)
    few = respace(schedule, 5)
    ddpm(denoiser, x, few, generator, variance="small")
    ddim(denoiser, x, few)
    assert torch.stack(asked).T.tolist() == [[999, 749, 500, 250, 0] * 2] * 3  # one time per image
    assert asked[0].dtype == x.dtype


def test_the_same_seed_gives_the_same_images(schedule, gaussian, generator):
    few, x = respace(schedule, 5), start(generator, 2)
    for sample in (lambda g: ddpm(gaussian.noise, x, few, g, variance="large"), lambda g: ddim(gaussian.noise, x, few, g, eta=0.5)):
        seeds = [sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(seeds[0], seeds[1]) and not torch.allclose(seeds[0], seeds[2])


def test_noise_needs_a_generator(schedule, gaussian):
    with pytest.raises(ConfigError, match="give it a generator"):
        ddim(gaussian.noise, torch.zeros(1, 1, 2, 2), schedule, eta=0.1)
