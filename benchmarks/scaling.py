"""How time and memory grow with genes, cells in a batch, depth and solver steps, for every backbone at its default size.

    python benchmarks/scaling.py [--quick]

Genes are the state itself (raw space). A point is one forward and backward pass of the network through `counterflow.memory.in_chunks`, as
in training, in processor seconds of one thread (median of three), and the largest resident set while it ran, less what was there before
(what earlier points gave back is used again, so small figures are too small). A point that takes more than 20 seconds ends its line.
``slope`` is the growth between the last two points: 1 is linear. Writes `benchmarks/results/scaling.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BACKBONES = ("mlp", "dit", "set", "ssm")
POINTS = {
    "genes": (250, 500, 1000, 2000, 5000, 10_000, 20_000),
    "batch": (16, 64, 256, 1024),
    "depth": (1, 2, 4, 8),
    "solver steps": (1, 5, 20, 80),
}
BASE = {"genes": 1000, "batch": 32, "depth": 2, "solver steps": 0}
LONGEST = 20.0


def point(backbone: str, genes: int, batch: int, depth: int, steps: int) -> dict[str, float]:
    """Seconds and megabytes of one pass, or of sampling with `steps` steps."""
    import torch

    from counterflow.backbones import build
    from counterflow.flow.guidance import bind
    from counterflow.flow.solvers import euler
    from counterflow.memory import forget_peak_memory, in_chunks, kept_per_cell, peak_memory
    from counterflow.processor import quick_products
    from counterflow.types import Condition

    torch.manual_seed(0)
    network = build(backbone, (genes,), 128, depth=depth)
    x, t = torch.randn(batch, genes), torch.rand(batch)
    condition = Condition(torch.randn(batch, 128), torch.randn(batch, 2, 128), torch.ones(batch, 2, dtype=torch.bool))
    with quick_products():
        kept = kept_per_cell(network, x, t, condition)

        def run() -> None:
            if steps:
                with torch.no_grad():
                    euler(bind(network, condition), x, torch.linspace(0, 1, steps + 1))
                return
            in_chunks(network, x, t, condition, kept).square().mean().backward()
            network.zero_grad()

        times: list[float] = []
        gc.collect()
        forget_peak_memory()
        before = peak_memory()
        while len(times) < 4 and sum(times) < LONGEST:
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return {"seconds": statistics.median(times[1:] or times), "mb": (peak_memory() - before) / 2**20, "parameters": weights}


def line(backbone: str, along: str, quick: bool) -> list[dict[str, float]]:
    """Points of one backbone along one axis."""
    rows = []
    for value in POINTS[along][: 2 if quick else None]:
        setting = BASE | {along: value}
        found = point(backbone, setting["genes"], setting["batch"], setting["depth"], setting["solver steps"])
        rows.append({"at": value, **found})
        if found["seconds"] > LONGEST / 2:
            break
    return rows


def slope(rows: list[dict[str, float]], key: str) -> float:
    if len(rows) < 2 or min(row[key] for row in rows[-2:]) <= 0:
        return math.nan
    return math.log(rows[-1][key] / rows[-2][key]) / math.log(rows[-1]["at"] / rows[-2]["at"])


def write(found: dict[str, dict[str, list[dict[str, float]]]], said: str) -> None:
    (RESULTS / "scaling.json").write_text(json.dumps({"how": said, "lines": found}, indent=1) + "\n", encoding="utf-8")
    text = ["# Scaling", "", f"`benchmarks/scaling.py` says what a point is. {said}", ""]
    text += ["| along | backbone | points: seconds (MB) | slope of time | slope of memory |", "| --- | --- | --- | ---: | ---: |"]
    for along, lines in found.items():
        for backbone, rows in lines.items():
            points = "; ".join(f"{row['at']:,}: {row['seconds']:.3g} ({row['mb']:.0f})" for row in rows)
            text.append(f"| {along} | {backbone} | {points} | {slope(rows, 'seconds'):.2f} | {slope(rows, 'mb'):.2f} |")
    (RESULTS / "scaling.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def draw(found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5), sharex="col", squeeze=False)
    for column, (along, lines) in zip(axes.T, found.items(), strict=True):
        for backbone, marker in zip(lines, "os^D", strict=True):
            rows = lines[backbone]
            at = [row["at"] for row in rows]
            column[0].loglog(at, [row["seconds"] for row in rows], f"{marker}-", ms=4, label=backbone)
            column[1].loglog(at, [max(row["mb"], 0.1) for row in rows], f"{marker}-", ms=4)
        column[1].set_xlabel(along)
        at = sorted({row["at"] for rows in lines.values() for row in rows})
        column[1].set_xticks(at, [f"{value:g}" if value < 1000 else f"{value / 1000:g}k" for value in at], fontsize=7)
        column[1].minorticks_off()
    axes[0, 0].set_ylabel("processor seconds")
    axes[1, 0].set_ylabel("memory, MB")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two points a line, nothing written: does it run?")
    parser.add_argument("--line", nargs=2, metavar=("BACKBONE", "ALONG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.line:  # in a process of its own: its memory is its own
        import torch

        torch.set_num_threads(1)
        print(json.dumps(line(*options.line, options.quick)))
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for along in POINTS:
        for backbone in BACKBONES:
            command = [sys.executable, __file__, "--line", backbone, along, *(["--quick"] if options.quick else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found.setdefault(along, {})[backbone] = json.loads(done.stdout.splitlines()[-1])
            print(along, backbone, [(row["at"], round(row["seconds"], 4)) for row in found[along][backbone]], flush=True)
    if not options.quick:
        write(found, f"{datetime.date.today().isoformat()}; batch 32, 1,000 genes, depth 2 where not said otherwise.")
        draw(found)


if __name__ == "__main__":
    main()
