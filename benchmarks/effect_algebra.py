"""Unseen combinations from their parts, three ways: effects added up, the encoder's pooling of parts, and the algebra of velocities.

    python benchmarks/effect_algebra.py [--seeds 10 11 12] [--seconds 8]

Simulated screens that no table shows; the first four of the hidden pairs in each cell type (validation, as in
`benchmarks/search_backbones.py`). ``error``: squared error of the predicted mean state, relative to that of no change; less is better.
``flow alone``: the flow has learnt whole effects (anchor="none"). ``beside the rule``: the flow has learnt what the rule misses, and is
added to it in full (the default takes less of it, as left-out conditions say). Writes `benchmarks/results/effect_algebra.md`.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path

import numpy as np
from held_out import train_the_flow, units
from search_backbones import BATCH, PAIRS

import counterflow as cf
from counterflow import demo
from counterflow.prediction import displaced
from counterflow.sampling import Sampling

OUT = Path(__file__).parent / "results" / "effect_algebra.md"


def screen(seed: int):
    """Four hidden pairs are the test, the others are not used."""
    made, hidden = demo.screen_with_hidden_pairs(seed)
    obs = made.adata.obs
    others = (obs["split"] == "test") & ~obs["perturbation"].isin(hidden[:PAIRS])
    obs["split"] = obs["split"].where(~others, "val")
    return made.adata


def fitted(adata, anchor: str, seconds: float) -> cf.CounterFlow:
    return train_the_flow(cf.CounterFlow(adata, anchor=anchor), max_seconds=seconds, batch_size=BATCH)


def errors(model: cf.CounterFlow) -> dict[str, list[float]]:
    """Of every held-out pair and context."""
    found: dict[str, list[float]] = {}
    for one in units(model):
        control = one.before.double().numpy()
        ways = {
            combine: displaced(model.module, one.before, one.controls, one.ids, one.factual, Sampling(combine=combine)).double().numpy()
            for combine in ("encoder", "algebra")
        }
        if model.rule is not None:
            ways["rule"] = np.zeros_like(control)
        for way, moved in ways.items():
            found.setdefault(way, []).append(one.scores(control + moved + one.anchor)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--seconds", type=float, default=8.0, help="processor seconds of each fit")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in options.seeds:
        adata = screen(seed)
        for anchor, name in (("none", "flow alone"), ("additive", "beside the rule")):
            for way, values in errors(fitted(adata, anchor, options.seconds)).items():
                label = "effects added up (the rule)" if way == "rule" else f"{way}, {name}"
                rows.setdefault(label, []).append(statistics.mean(values))
                print(seed, label, round(rows[label][-1], 3), flush=True)
    head = " | ".join(f"screen {seed}" for seed in options.seeds)
    text = [
        "# Effect algebra", "",
        f"`benchmarks/effect_algebra.py` says what is measured; {datetime.date.today()}, fits of {options.seconds:g} processor seconds.",
        "",
        f"| way | {head} | mean |", "| --- |" + " ---: |" * (len(options.seeds) + 1),
    ]  # fmt: skip
    text += [f"| {way} | {' | '.join(f'{v:.3f}' for v in values)} | {statistics.mean(values):.3f} |" for way, values in rows.items()]
    OUT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
