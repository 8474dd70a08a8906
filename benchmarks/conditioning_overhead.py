"""What each way of listening to the condition costs in an image DiT: parameters, multiply-accumulates, time.

    python benchmarks/conditioning_overhead.py [--rounds 6] [--out benchmarks/results/conditioning_overhead.json]

Parameters and multiply-accumulates of XL/2 and S/2 are counted on the meta device (torch's FLOP counter, attention written out; forward
pass of one latent of 4 x 32 x 32 under one label). The time is that of S/2 on one thread, in seconds of the CPU, batch 4: forward, and
forward and backward. Every variant has its turn in every round, and its quickest round counts: what else the machine does only adds.
`benchmarks/parity_doc.py` makes the table of docs/parity.md.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterflow.backbones.image_dit import ImageDiT

VARIANTS = ("adaln", "adaln_plain", "cross", "cross_layerscale", "in_context")
PAPER = {  # XL/2 (arXiv 2212.09748, table 4): million parameters, "Gflops", which are multiply-accumulates
    "adaln": (675, 118.64),
    "adaln_plain": (600, 118.56),
    "cross": (598, 137.62),
    "in_context": (449, 119.37),
}


def network(size: str, conditioning: str) -> ImageDiT:
    return ImageDiT(size=size, objective="ddpm", conditioning=conditioning).eval()


def inputs(n_images: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n_images, 4, 32, 32), torch.full((n_images,), 500.0), torch.zeros(n_images, dtype=torch.long)


def count(size: str, conditioning: str) -> dict[str, float]:
    """Trainable parameters, and giga multiply-accumulates of one image."""
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = network(size, conditioning)
        model(*inputs(1))
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmac": round(counter.get_total_flops() / 2e9, 3),
    }


def seconds(run: Callable[[], object]) -> float:
    start = process_time()
    run()
    return process_time() - start


def forward(model: nn.Module) -> None:
    with torch.no_grad():
        model(*inputs(4))


def step(model: nn.Module) -> None:
    model.zero_grad()
    model(*inputs(4)).square().mean().backward()


def time(rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds per image of S/2, of the quickest round."""
    models = {conditioning: network("S/2", conditioning) for conditioning in VARIANTS}
    taken: dict[str, dict[str, list[float]]] = {conditioning: {"forward": [], "step": []} for conditioning in VARIANTS}
    for _ in range(rounds):
        for conditioning, model in models.items():
            taken[conditioning]["forward"].append(seconds(lambda model=model: forward(model)) / 4)
            taken[conditioning]["step"].append(seconds(lambda model=model: step(model)) / 4)
    return {name: {what: round(min(values), 4) for what, values in by.items()} for name, by in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "conditioning_overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = time(options.rounds)
    rows = [
        {
            "conditioning": conditioning,
            "XL/2": count("XL/2", conditioning),
            "S/2": count("S/2", conditioning) | {"seconds": times[conditioning]},
            "paper": dict(zip(("million_parameters", "gmac"), PAPER[conditioning], strict=True)) if conditioning in PAPER else None,
        }
        for conditioning in VARIANTS
    ]
    result = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rounds": options.rounds, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
