"""How the time of a mixer grows with the number of tokens: long convolution, attention, selective scan.

    python benchmarks/longconv.py [--rounds 3] [--out benchmarks/results/longconv.json]

One cell, width 64 (two heads, state 16), forward, on one thread, in seconds of the processor; the quickest of the rounds counts. `slope`
is the exponent of the growth between the last two lengths: 2 is quadratic, 1 is linear. `error` is the distance of the Fourier transform
from the plain sum, relative to its largest value.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from time import process_time

import torch

from counterflow.nn.attention import SelfAttention
from counterflow.nn.longconv import LongConvolution, convolve, convolve_plain
from counterflow.nn.ssm import BidirectionalSSM

LENGTHS, WIDTH = (256, 1024, 4096, 16384), 64
MIXERS = {
    "longconv": lambda: LongConvolution(WIDTH),
    "attention": lambda: SelfAttention(WIDTH, 2),
    "ssm": lambda: BidirectionalSSM(WIDTH, 2, 16),
}


@torch.no_grad()
def seconds(name: str, n_tokens: int, rounds: int) -> float:
    """Of one forward pass."""
    mixer, x = MIXERS[name]().eval(), torch.randn(1, n_tokens, WIDTH)
    mixer(x)
    best = math.inf
    for _ in range(rounds):
        start = process_time()
        mixer(x)
        best = min(best, process_time() - start)
    return best


def error(n_tokens: int, dtype: torch.dtype) -> float:
    """Of the fast convolution."""
    u, h = torch.randn(2, n_tokens, 8, dtype=dtype), torch.randn(2 * n_tokens - 1, 8, dtype=dtype)
    plain = convolve_plain(u, h)
    return ((convolve(u, h) - plain).abs().max() / plain.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "longconv.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times = {name: {n: round(seconds(name, n, options.rounds), 5) for n in LENGTHS} for name in MIXERS}
    slopes = {name: round(math.log(t[LENGTHS[-1]] / t[LENGTHS[-2]]) / math.log(LENGTHS[-1] / LENGTHS[-2]), 2) for name, t in times.items()}
    errors = {str(dtype): {n: float(f"{error(n, dtype):.1e}") for n in (1, 2, 7, 64, 200)} for dtype in (torch.float32, torch.float64)}
    found = {"torch": torch.__version__, "machine": platform.machine(), "seconds": times, "slope": slopes, "error": errors}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
