"""DDPM and DDIM against diffusers' schedulers, given the same noise. Just these: `pytest -m parity tests/parity/test_diffusion.py`."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the oracle diffusers is not installed: pip install '.[parity]'")
pytestmark = pytest.mark.parity

FILE = Path(__file__).parents[2] / "benchmarks" / "parity_diffusion.py"
SPEC = importlib.util.spec_from_file_location("parity_diffusion", FILE)
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)


@pytest.mark.parametrize("steps", parity.STEPS)
def test_ddpm_takes_the_same_steps(steps, within):
    step, chain = parity.ddpm_differences(steps, double=True)
    within(f"DDPM, {steps} steps, worst step, their tables in float64", step, parity.DDPM)
    within(f"DDPM, {steps} steps, chains on their own, their tables in float64", chain, parity.CHAIN)
    within(f"DDPM, {steps} steps, worst step", parity.ddpm_differences(steps, double=False)[0], parity.FLOAT32_TABLES)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_with_a_fixed_variance_and_clipped_pixels(variance, within):
    step, _ = parity.ddpm_differences(50, double=True, variance=variance, clip=1.0)
    within(f"DDPM, 50 steps, {variance} variance, clipped, worst step, their tables in float64", step, parity.DDPM)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [50, 250])
def test_ddim_takes_the_same_steps(steps, eta, within):
    step, chain = parity.ddim_differences(steps, eta, double=True)
    within(f"DDIM, eta {eta:g}, {steps} steps, worst step, their tables in float64", step, parity.DDIM)
    within(f"DDIM, eta {eta:g}, {steps} steps, chains on their own, their tables in float64", chain, parity.CHAIN)


def test_ddim_without_noise_agrees_with_float32_tables_too(within):
    within("DDIM, eta 0, 50 steps, worst step", parity.ddim_differences(50, 0.0, double=False)[0], parity.DDIM)


def test_ddim_with_clipped_pixels(within):
    step, _ = parity.ddim_differences(50, 0.5, double=True, clip=1.0)
    within("DDIM, eta 0.5, 50 steps, clipped, worst step, their tables in float64", step, parity.DDIM)
