"""The goals of speed and what was seen, from `benchmarks/results/speed.json`, `fit_to_quality.json`: `benchmarks/results/speed.md`.

python benchmarks/speed_doc.py
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Figures:
    """Medians by the beginning of their name; NaN where there is none."""

    def __init__(self, stored: dict) -> None:
        self.values = {name: statistics.median(entry["values"]) for name, entry in stored["figures"].items()}
        self.more = {name: entry["more"] for name, entry in stored["figures"].items()}

    def __call__(self, start: str) -> float:
        """The figure whose name begins so."""
        return next((value for name, value in self.values.items() if name.startswith(start)), math.nan)

    def extra(self, start: str, key: str) -> float:
        """What else was noted with it."""
        return next((more.get(key, math.nan) for name, more in self.more.items() if name.startswith(start)), math.nan)


def goals(f: Figures, quality: dict) -> Iterator[tuple[str, str, float, float, str]]:
    """(what, against what, ratio or value seen, goal, how the two numbers came)."""

    def rate(ours: str, theirs: str) -> tuple[float, str]:
        return f(ours) / f(theirs), f"{f(ours):,.4g} against {f(theirs):,.4g} cells/s"

    def time(ours: str, theirs: str) -> tuple[float, str]:
        return f(theirs) / f(ours), f"{f(ours):,.4g} against {f(theirs):,.4g} ms"

    cellflow, euler = "generate: cellflow small default", "generate: cellflow small euler 20 steps of 2048"
    for what, pair, goal in (
        ("sampling, our default in fp32 (midpoint, 5 steps) : CellFlow's default", rate("sample: midpoint fp32", cellflow), 400),
        ("the same in bfloat16", rate("sample: midpoint bf16", cellflow), 400),
        ("sampling, euler in 20 steps, fp32 : CellFlow's", rate("sample: euler fp32", euler), 2),
        ("the same in bfloat16", rate("sample: euler bf16", euler), 2),
        ("training, coupling included, fp32 : CellFlow", rate("train: fit ot 32-true", "train: cellflow small"), 0.95),
        ("the same, bfloat16", rate("train: fit ot bf16-mixed", "train: cellflow small"), 1.6),
        ("training, random pairing, fp32 : CellFlow", rate("train: fit independent 32-true", "train: cellflow small-noot"), 1.0),
        ("the same, bfloat16", rate("train: fit independent bf16-mixed", "train: cellflow small-noot"), 1.8),
        ("four blocks of a DiT, 8 x 256 tokens, fp32 : diffusers", time("dit: fp32", "dit_stack: diffusers_dit"), 1.0),
        ("the same, bfloat16", time("dit: bf16", "dit_stack: diffusers_dit"), 1.5),
        *(
            row
            for n in (256, 512, 1024, 2048)
            for row in (
                (f"Mamba-2 mixer, {n} tokens, fp32 : mambapy", time(f"ssm: mamba2 fp32 L={n}", f"mamba_block: mambapy_pscan L={n}"), 6),
                ("  : transformers' Mamba-2", time(f"ssm: mamba2 fp32 L={n}", f"mamba_block: transformers_mamba2_torch L={n}"), 1.25),
            )
        ),
    ):
        yield what, "at least", *pair[:1], goal, pair[1]
    for kind in ("32-true", "bf16-mixed"):
        bare, fit = f(f"train: bare {kind}"), f(f"train: fit independent {kind}")
        yield (
            f"what a step costs beside the bare network, {kind}",
            "at most",
            bare / fit - 1,
            0.05,
            f"{fit:,.4g} against {bare:,.4g} cells/s",
        )
    yield "2,000 genes, bfloat16, cells/s", "at least", f("raw: fit independent bf16-mixed"), 3000, _others(f)
    per_token = [f(f"ssm: mamba2 fp32 L={n}") / n for n in (256, 512, 1024, 2048)]
    yield "Mamba-2 mixer, time per token, largest over smallest", "at most", max(per_token) / min(per_token), 1.15, "256 to 2,048 tokens"
    yield (
        "coupling of 1,024 cells, ms",
        "at most",
        f("coupling: ot"),
        25,
        f"exact: {f('coupling: torchcfm_exact_step dim=50 batch=1024'):.3g}",
    )
    yield "  share of the exact plan's gain", "at least", f.extra("coupling: ot", "gain"), 0.8, "sub-batches of 256"
    cold = f.extra("train: cellflow small", "time_to_first_step_s")
    said = f"{f('first_step: fit'):.3g} s, PCA included, against {cold:.3g} s, components given (wall)"
    yield "first step after the start : CellFlow", "at least", cold / f("first_step: fit"), 5, said
    yield "peak memory, PCA workload: training, MB", "at most", f.extra("train: fit ot 32-true", "peak_mb"), 1000, _memory(f)
    if quality:
        ours, theirs = quality["to_quality"]["counterflow"], quality["to_quality"].get("CellFlow", {"seconds": math.nan, "final": math.nan})
        said = f"{ours['seconds']:.3g} against {theirs['seconds']:.4g} s; final energy {ours['final']:.3f} and {theirs['final']:.3f}"
        yield (
            "processor seconds to within a tenth of the final energy : CellFlow",
            "at most",
            ours["seconds"] / theirs["seconds"],
            1 / 3,
            said,
        )


def _others(f: Figures) -> str:
    names = [name for name in f.values if name.startswith("train: ") and any(tool in name for tool in ("state", "cpa", "gears"))]
    return "; ".join(f"{name[7:]} {f.values[name]:,.4g}" for name in names) or "no other tool was run"


def _memory(f: Figures) -> str:
    return f"CellFlow {f.extra('train: cellflow small', 'peak_rss_mib'):.0f}; sampling {f.extra('sample: dopri5 fp32', 'peak_mb'):.0f}"


def page() -> str:
    """The table, in words around it."""
    stored = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    file = RESULTS / "fit_to_quality.json"
    quality = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    where = ", ".join(f"{key} {value}" for key, value in stored.items() if key != "figures")
    text = [
        "# Speed beside other tools", "",
        f"Written by `benchmarks/speed_doc.py` from `speed.json` ({where}) and `fit_to_quality.json`.",
        "Processor seconds of one thread, medians of rounds in which ours and theirs took turns on a shared machine (single figures",
        "move by a tenth; all of them, with the lowest and highest: `speed_figures.md`). 3 million parameters each, 50 principal",
        "components, batches of 1,024, unless said otherwise. Error of our default sampler against a tight solution: `solvers.md`;",
        "growth with genes, cells, depth and steps: `scaling.md`.",
        "",
        "| what | seen | goal | | figures |", "| --- | ---: | ---: | --- | --- |",
    ]  # fmt: skip
    for what, direction, seen, goal, said in goals(Figures(stored), quality):
        met = seen >= goal if direction == "at least" else seen <= goal
        verdict = "not measured" if math.isnan(seen) else "met" if met else "**missed**"
        text.append(f"| {what} | {seen:,.3g} | {direction} {goal:,.3g} | {verdict} | {said} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    (RESULTS / "speed.md").write_text(page(), encoding="utf-8")
    print(page())
