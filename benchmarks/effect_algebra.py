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
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
from search_backbones import BATCH, CELLS, PAIRS

import counterflow as cf
from counterflow import demo
from counterflow.prediction import displaced
from counterflow.recipe import Recipe
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

OUT = Path(__file__).parent / "results" / "effect_algebra.md"


def screen(seed: int):
    """Four hidden pairs are the test, the others are not used."""
    made, hidden = demo.screen_with_hidden_pairs(seed)
    obs = made.adata.obs
    others = (obs["split"] == "test") & ~obs["perturbation"].isin(hidden[:PAIRS])
    obs["split"] = obs["split"].where(~others, "val")
    return made.adata


def fitted(adata, anchor: str, seconds: float) -> cf.CounterFlow:
    model = cf.CounterFlow(adata, anchor=anchor)
    with (
        warnings.catch_warnings(),
        mock.patch("counterflow.recipe.folds", return_value=[]),
        mock.patch.object(Recipe, "trust", return_value={}),
    ):
        warnings.simplefilter("ignore")
        model.train(max_seconds=seconds, batch_size=BATCH, progress=False)
    return model


def errors(model: cf.CounterFlow) -> dict[str, list[float]]:
    """Of every held-out pair and context."""
    cells, found = model._screen, {}
    test = (cells.split == "test") & ~cells.is_control
    for code, context in sorted(set(zip(cells.condition[test].tolist(), cells.context[test].tolist(), strict=True))):
        spec, target = cells.conditions[code], np.flatnonzero(test & (cells.condition == code) & (cells.context == context))
        some = cells.rows(np.flatnonzero(cells.is_control & (cells.context == context))[:CELLS])
        before, real = model.space.encode(some.counts, some.library), model.space.encode(cells.counts[target], cells.library[target])
        levels = {key: list(some.covariates[key]) for key in model.vocabulary.covariates}
        ids, factual = (model.vocabulary.ids([what] * len(before), levels) for what in (spec, ConditionSpec()))
        start, truth = before.double().numpy().mean(0), real.double().numpy().mean(0)
        rule = np.zeros_like(start) if model.rule is None else np.asarray(model.rule.states.anchor(spec))
        ways = {
            combine: rule + displaced(model.module, before, some, ids, factual, Sampling(combine=combine)).double().numpy().mean(0)
            for combine in ("encoder", "algebra")
        }
        if model.rule is not None:
            ways["rule"] = rule
        for way, shift in ways.items():
            found.setdefault(way, []).append(float(((start + shift - truth) ** 2).sum() / ((start - truth) ** 2).sum()))
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
