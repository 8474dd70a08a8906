"""Our DDPM and DDIM chains beside those of diffusers' schedulers: the same random network, the same noise, every step compared.

    python benchmarks/parity_diffusion.py

Needs the extra `parity`. Prints one row per chain: what, the largest measured difference, and what is tolerated.
`tests/parity/test_diffusion.py` runs the same comparisons.

A step is compared from the same state: theirs starts from where ours was. Besides, both chains run on their own from the same noise.
The network is a random image DiT around the exact denoiser of Gaussian data, so that states keep a size of 1 to 5, as those of images do.
Differences are relative to the largest entry of the state, where that is above 1.

diffusers keeps its tables in float32 and takes differences of numbers close to 1, which costs it up to four digits in the last steps with
noise. So each chain is compared twice: with its scheduler as it is, and with the scheduler's tables set to float64, by its own formula.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from counterflow.backbones.image_dit import ImageDiT
from counterflow.diffusion.ddim import ddim
from counterflow.diffusion.ddpm import ddpm
from counterflow.diffusion.respacing import respace
from counterflow.diffusion.reverse import Denoiser
from counterflow.diffusion.schedule import at, linear_schedule

Row = tuple[str, float, float]
DDPM, DDIM = 1.2e-5, 8e-7
FLOAT32_TABLES = 1.7e-4  # theirs: a variance that is the difference of two numbers close to 1
CHAIN = 1e-5
SHAPE = (2, 4, 8, 8)
STEPS = (1000, 250, 50)
MEAN, SPREAD = 0.3, 0.5  # of the Gaussian images


def random_denoiser(seed: int = 0) -> Denoiser:
    """Noise and variance; every weight of the network drawn anew, because a fresh one gives 0."""
    generator = torch.Generator().manual_seed(seed)
    network = ImageDiT(SHAPE[1:], 10, width=32, depth=2, n_heads=4, patch=2, objective="ddpm").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5, generator=generator)
    A, labels = linear_schedule().A, torch.tensor([3, 10])

    @torch.no_grad()
    def denoiser(x: Tensor, time: Tensor) -> Tensor:
        signal = at(A, time.long(), x)
        exact = (1 - signal).sqrt() * (x - signal.sqrt() * MEAN) / (1 - signal + signal * SPREAD**2)
        noise, v = network(x, time, labels).chunk(2, 1)
        return torch.cat([exact + 0.1 * noise, v], 1)

    return denoiser


class Recorded:
    """A denoiser that keeps what it was asked and what it answered."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.states: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.times: list[int] = []

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Ask it."""
        self.states.append(x)
        self.times.append(int(time[0]))
        self.outputs.append(self.denoiser(x, time))
        return self.outputs[-1]


def start(seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """Noise to start from, and the generator of the noise of the steps: the same for both chains."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)), torch.Generator().manual_seed(seed + 1)


def double_tables(scheduler: Any) -> None:
    """Let a scheduler of diffusers keep its tables in float64, from its own formula."""
    config = scheduler.config
    scheduler.betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)


def ddpm_scheduler(steps: int, *, double: bool, **options: Any) -> Any:
    """Diffusers' ancestral sampling, set to the reference's conventions."""
    from diffusers import DDPMScheduler

    options = {"variance_type": "learned_range", "clip_sample": False, "timestep_spacing": "linspace"} | options
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    if double:
        double_tables(scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def ddim_scheduler(steps: int, *, double: bool, **options: Any) -> Any:
    """Diffusers' DDIM, set to the reference's conventions."""
    from diffusers import DDIMScheduler

    options = {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True} | options
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    if double:
        double_tables(scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def differences(ours: Any, scheduler: Any, *, noise_only: bool, **step_options: Any) -> tuple[float, float]:
    """The largest difference of one step, and that of the two chains: `ours(denoiser, x, generator)`, and theirs with the same network."""
    denoiser = random_denoiser()

    def step(output: Tensor, time: int, x: Tensor, generator: torch.Generator) -> Tensor:
        output = output[:, : SHAPE[1]] if noise_only else output
        return scheduler.step(output, time, x, generator=generator, **step_options).prev_sample

    x, generator = start()
    recorded = Recorded(denoiser)
    last = ours(recorded, x, generator)
    times, after = scheduler.timesteps.tolist(), [*recorded.states[1:], last]
    assert recorded.times == times, f"other times: {recorded.times[:5]} ... against {times[:5]} ..."

    _, generator = start()
    asked = zip(recorded.outputs, times, recorded.states, after, strict=True)
    steps = [apart(step(output, time, state, generator), reached) for output, time, state, reached in asked]
    x, generator = start()
    chains = []
    for time, reached in zip(times, after, strict=True):
        x = step(denoiser(x, torch.full((len(x),), float(time))), time, x, generator)
        chains.append(apart(x, reached))
    return max(steps), max(chains)


def apart(theirs: Tensor, ours: Tensor) -> float:
    """Largest difference, relative to the largest entry where that is above 1."""
    return float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1))


def clipping(clip: float | None) -> dict[str, Any]:
    return {} if clip is None else {"clip_sample": True, "clip_sample_range": clip}


def ddpm_differences(steps: int, *, double: bool, variance: str = "learned_range", clip: float | None = None) -> tuple[float, float]:
    """Of ancestral sampling: the worst step, and the chains."""
    schedule = respace(linear_schedule(), steps)

    def ours(denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Tensor:
        return ddpm(denoiser, x, schedule, generator, variance=variance, clip=clip)

    learned = variance == "learned_range"
    scheduler = ddpm_scheduler(steps, double=double, variance_type=variance if learned else f"fixed_{variance}", **clipping(clip))
    return differences(ours, scheduler, noise_only=not learned)


def ddim_differences(steps: int, eta: float, *, double: bool, clip: float | None = None) -> tuple[float, float]:
    """Of DDIM: the worst step, and the chains. With clipping, the noise follows from the clipped image, as in the reference."""
    schedule = respace(linear_schedule(), f"ddim{steps}")

    def ours(denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Tensor:
        return ddim(denoiser, x, schedule, generator, eta=eta, clip=clip)

    scheduler = ddim_scheduler(steps, double=double, **clipping(clip))
    return differences(ours, scheduler, noise_only=True, eta=eta, use_clipped_model_output=clip is not None)


def diffusion() -> Iterator[Row]:
    for steps in STEPS:
        yield f"DDPM, {steps} steps, worst step, against diffusers as it is", ddpm_differences(steps, double=False)[0], FLOAT32_TABLES
        step, chain = ddpm_differences(steps, double=True)
        yield f"DDPM, {steps} steps, worst step, against diffusers with float64 tables", step, DDPM
        yield f"DDPM, {steps} steps, chains on their own, against diffusers with float64 tables", chain, CHAIN
    for variance in ("small", "large"):
        step, _ = ddpm_differences(250, double=True, variance=variance, clip=1.0)
        yield f"DDPM, 250 steps, {variance} variance, clipped, worst step, against diffusers with float64 tables", step, DDPM
    for steps in (50, 250):
        yield f"DDIM, eta 0, {steps} steps, worst step, against diffusers as it is", ddim_differences(steps, 0.0, double=False)[0], DDIM
        for eta in (0.0, 0.5, 1.0):
            step, chain = ddim_differences(steps, eta, double=True)
            yield f"DDIM, eta {eta:g}, {steps} steps, worst step, against diffusers with float64 tables", step, DDIM
            yield f"DDIM, eta {eta:g}, {steps} steps, chains on their own, against diffusers with float64 tables", chain, CHAIN
    step, _ = ddim_differences(50, 0.5, double=True, clip=1.0)
    yield "DDIM, eta 0.5, 50 steps, clipped, worst step, against diffusers with float64 tables", step, DDIM


if __name__ == "__main__":
    torch.set_num_threads(1)
    for what, measured, tolerance in diffusion():
        print(f"{what:<100} {measured:<8.3g}  (tolerated {tolerance:g})" + ("" if measured <= tolerance else "  FAILS"), flush=True)
