"""What the default recipe's mean was chosen on: every estimator that was tried, on conditions that no table of results holds out.

::

    python benchmarks/search.py [--only contexts elsewhere shrinkage combinations backbones] [--data FOLDER]

contexts
    Kang: a cell type V is predicted from five others, without a sixth T (42 ordered pairs). For a test on T only the six pairs that leave T
    out count, and the order of the estimators is the same for all seven T (column ``worst T``).
elsewhere
    The same estimators where they were not chosen: each cell type of either of Kang's two donors from the other four, and each of eight
    cell types of simulated screens 10 to 12.
shrinkage
    Norman singles, Schraivogel, McFaline, Kang, A549: an effect measured on half of the cells predicts that of the other half (5 halvings).
combinations
    Simulated screens 10 to 13, which no table shows: error to the true mean of hidden pairs, relative to the additive rule. Norman: each of
    the five pairs whose parts were measured alone, without another of them (20 ordered pairs): correlation and squared error.
backbones
    `search_backbones.py`: about ten minutes of fits, which are kept.

Written to ``benchmarks/results/search.md``; sections that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accuracy import BOTH_SEEN, FILES, SETUP
from numpy.typing import NDArray
from search_backbones import backbones

import counterflow as cf
from counterflow import demo
from counterflow.data.matrix import log_normalised
from counterflow.data.simulate import simulate_screen
from counterflow.effects import kriging, similarity
from counterflow.effects.combinations import Combinations
from counterflow.effects.interactions import Interactions
from counterflow.effects.kriging import KrigedRule, MeasuredEffects, shrunk
from counterflow.evaluate.metrics import welch_t
from counterflow.types import ConditionSpec

Table = dict[str, list[float]]
IFNB = ConditionSpec(("IFNb",), (1.0,))
GRID = {"REACH": (0.25, 0.5, 1.0, 2.0), "SLOPE": (0.0, 0.1, 0.3, 0.6, 1.0), "PRIOR_CELLS": (1.0, 10.0)}
MIXED = {"SHARPNESS": (4.0, 6.0, 9.0), "STRONG": (1.5, 2.0, 3.0)}


def load(name: str, folder: Path) -> tuple[NDArray, NDArray, NDArray, list[str]]:
    """Log expression, condition, context and genes."""
    adata = cf.read_h5ad(folder / FILES[name])
    key = SETUP[name].get("library_size_key")
    library = adata.obs[key].to_numpy(dtype=float) if key else np.asarray(adata.X.sum(1), dtype=float).ravel()
    condition = adata.obs["perturbation"].astype(str).to_numpy()
    if "time_h" in adata.obs:
        condition = np.where(condition == "control", "control", condition + " " + adata.obs["time_h"].astype(str).to_numpy())
    keys = SETUP[name].get("match_keys", [])
    context = adata.obs[keys].astype(str).agg("|".join, axis=1).to_numpy() if keys else np.full(adata.n_obs, "")
    return log_normalised(adata.X, library).toarray(), condition, context, list(adata.var_names)


# ------------------------------------------------------------------------------------------------------------------ contexts


def contexts(folder: Path) -> list[str]:
    expression, condition, context, _ = load("kang", folder)
    is_control = condition == "control"
    types = sorted(set(context))
    control = np.array([expression[is_control & (context == t)].mean(0) for t in types])
    effect = np.array([expression[~is_control & (context == t)].mean(0) for t in types]) - control
    weight = np.array([gene_weights(expression[~is_control & (context == t)], expression[is_control & (context == t)]) for t in types])

    def mean(train: list[int], target: int) -> NDArray:
        return effect[train].mean(0)

    def clipped(rule: Callable[[list[int], int], NDArray]) -> Callable[[list[int], int], NDArray]:
        return lambda train, target: np.maximum(control[target] + rule(train, target), 0) - control[target]

    def similar(strength: float) -> Callable[[list[int], int], NDArray]:
        def rule(train: list[int], target: int) -> NDArray:
            distance = np.sqrt(((control[train] - control[target]) ** 2).sum(1))
            weight = np.exp(-strength * distance / np.median(distance))
            return weight @ effect[train] / weight.sum()

        return rule

    def mixed(train: list[int], target: int, alone: bool = False) -> NDArray:
        rows = np.flatnonzero(np.isin(context, [types[t] for t in train]) | (is_control & (context == types[target])))
        levels = sorted(set(context[rows]))
        code = np.array([levels.index(level) for level in context[rows]])
        measured = MeasuredEffects.measure(
            lambda r: expression[rows[r]], [ConditionSpec(), IFNB], np.where(is_control[rows], 0, 1), [(level,) for level in levels], code
        )
        rule = KrigedRule(measured, 0.0)
        return (without_similarity(rule) if alone else rule).effect(IFNB, (types[target],), control[target])

    def kriged(train: list[int], target: int) -> NDArray:
        return mixed(train, target, alone=True)

    truth = effect, weight
    rows = [scored("mean of the contexts", mean, truth), scored("the same, not below zero", clipped(mean), truth)]
    rows += [scored(f"similar contexts, strength {s:g}", clipped(similar(s)), truth) for s in (1.0, 2.0, 3.0, 4.0, 6.0)]
    for module, grid, rule, title in ((kriging, GRID, kriged, "kriging"), (similarity, MIXED, mixed, "**kriging and similar contexts**")):
        rows.append(scored(title, rule, truth))
        for name, values in grid.items():
            kept = getattr(module, name)
            for value in values:
                setattr(module, name, value)
                rows.append(scored(f"{title.strip('*')}, {name} {value:g}" + (" (chosen)" if value == kept else ""), rule, truth))
            setattr(module, name, kept)
    return ["| estimator | pearson_delta | squared error | wmse | worst T | best T |", "|---|---|---|---|---|---|", *rows]


def without_similarity(rule: KrigedRule) -> KrigedRule:
    """The same, kriged alone."""
    rule.__dict__["similarity"] = np.zeros(2)
    return rule


def gene_weights(perturbed: NDArray, control: NDArray) -> NDArray:
    """Of `wmse`: by how sure it is that a gene changed."""
    t = np.abs(welch_t(perturbed, control))
    weight = ((t - t.min()) / np.ptp(t)) ** 2
    return weight / weight.sum()


def elsewhere(folder: Path) -> list[str]:
    expression, condition, context, _ = load("donors", folder)
    donor = np.array([level.split("|")[0] for level in context])
    screens = [(f"donor {d}", *(x[donor == d] for x in (expression, condition, context))) for d in sorted(set(donor))]
    for seed in (10, 11, 12):
        screen = simulate_screen(n_perturbations=10, n_pairs=3, n_cell_types=8, cells_per_condition=320, cells_control=1600, seed=seed)
        obs, counts = screen.adata.obs, screen.adata.X
        found = log_normalised(counts, np.asarray(counts.sum(1), dtype=float).ravel()).toarray()
        screens.append((f"simulated {seed}", found, obs["perturbation"].astype(str).to_numpy(), obs["cell_type"].astype(str).to_numpy()))
    lines = ["| screen | predicted | kriging: pearson_delta / error | and similar contexts |", "|---|---|---|---|"]
    for title, cells, what, where in screens:
        scores = []
        for left_out in sorted(set(where)):
            kept = (where != left_out) | (what == "control")
            names, levels = ["control", *sorted(set(what[kept]) - {"control"})], sorted(set(where[kept]))
            code, level = (np.array([list_.index(x) for x in values]) for list_, values in ((names, what[kept]), (levels, where[kept])))
            specs = [ConditionSpec(), *(ConditionSpec((name,), (1.0,)) for name in names[1:])]
            measured = MeasuredEffects.measure(lambda r, c=cells[kept]: c[r], specs, code, [(name,) for name in levels], level)
            before = cells[(where == left_out) & (what == "control")].mean(0)
            for spec in specs[1:]:
                rows = cells[(where == left_out) & (what == spec.parts[0])]
                if len(rows) < 15 or "+" in spec.parts[0]:
                    continue
                real = rows.mean(0) - before
                both = [
                    r.effect(spec, (left_out,), before) for r in (without_similarity(KrigedRule(measured, 0.0)), KrigedRule(measured, 0.0))
                ]
                scores.append([x for e in both for x in (np.corrcoef(e, real)[0, 1], ((e - real) ** 2).sum())])
        mean = np.mean(scores, 0)
        lines.append(f"| {title} | {len(scores)} | {mean[0]:.4f} / {mean[1]:.2f} | {mean[2]:.4f} / {mean[3]:.2f} |")
    return lines


def scored(title: str, rule: Callable[[list[int], int], NDArray], truth: tuple[NDArray, NDArray]) -> str:
    """Mean over the 42 pairs, and over the pairs of each left-out T."""
    effect, weight = truth
    n = len(effect)
    found = []
    for test in range(n):
        for target in range(n):
            if target != test:
                predicted = rule([k for k in range(n) if k not in (test, target)], target)
                missed = (predicted - effect[target]) ** 2
                weighted = float((weight[target] * missed).sum())
                found.append((test, float(np.corrcoef(predicted, effect[target])[0, 1]), float(missed.sum()), weighted))
    table = np.array(found)
    per_test = [table[table[:, 0] == test, 1].mean() for test in range(n)]
    print(title, per_test, flush=True)
    means = f"{table[:, 1].mean():.4f} | {table[:, 2].mean():.1f} | {table[:, 3].mean():.4f}"
    return f"| {title} | {means} | {min(per_test):.3f} | {max(per_test):.3f} |"


# ----------------------------------------------------------------------------------------------------------------- shrinkage


def own(effect: NDArray, noise: NDArray) -> NDArray:
    return effect**2 / (effect**2 + noise + 1e-12)


def whole(effect: NDArray, noise: NDArray, least: float = 0.1) -> float:
    return max(1 - float(noise.sum()) / float((effect**2).sum()), least)


SHRINKAGE: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "none": lambda effect, noise: effect,
    "James-Stein of the condition": lambda effect, noise: effect * whole(effect, noise, 0.0),
    "the same, a tenth at least": lambda effect, noise: effect * whole(effect, noise),
    "positive part, gene by gene": lambda effect, noise: effect * np.clip(1 - noise / np.maximum(effect**2, 1e-12), 0, 1),
    "smooth, gene by gene": lambda effect, noise: effect * own(effect, noise),
    "root of both": lambda effect, noise: effect * np.sqrt(whole(effect, noise) * own(effect, noise)),
    "both": lambda effect, noise: effect * whole(effect, noise) * own(effect, noise),
    "**condition, and root of the gene's**": shrunk,
}


def shrinkage(folder: Path) -> list[str]:
    lines = ["| shrinkage | " + " | ".join(f"{name}: r / error" for name in FILES if name != "donors") + " |", "|---" * len(FILES) + "|"]
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in SHRINKAGE}
    for name in FILES:
        if name == "donors":
            continue
        for seed in range(5):
            halves = list(halved(name, folder, np.random.default_rng(seed)))
            scale = float(np.mean([(other**2).sum() for _, _, other in halves]))
            for title, shrink in SHRINKAGE.items():
                r, missed = [], []
                for effect, noise, other in halves:
                    predicted = shrink(effect, noise)
                    r.append(float(np.corrcoef(predicted, other)[0, 1]) if predicted.std() else 0.0)
                    missed.append(float(((predicted - other) ** 2).sum()))
                scores[title].setdefault(name, []).append((float(np.mean(r)), float(np.mean(missed)) / scale))
    for title, by_file in scores.items():
        cells = [f"{np.mean(values, 0)[0]:.3f} / {np.mean(values, 0)[1]:.3f}" for values in by_file.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def halved(name: str, folder: Path, rng: np.random.Generator) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Effect and noise of one half of cells and controls, and effect of the other; the perturbed gene counts as zero. Norman: singles."""
    expression, condition, context, genes = load(name, folder)
    for level in sorted(set(context)):
        controls = rng.permutation(np.flatnonzero((context == level) & (condition == "control")))
        for what in sorted(set(condition) - {"control"}):
            rows = rng.permutation(np.flatnonzero((context == level) & (condition == what)))
            if len(rows) < 8 or "+" in what:
                continue
            kept = np.array([gene != what for gene in genes])
            parts = [(expression[rows[half::2]], expression[controls[half::2]]) for half in (0, 1)]
            effects = [(a.mean(0) - b.mean(0)) * kept for a, b in parts]
            a, b = parts[0]
            yield effects[0], (a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)) * kept, effects[1]


# -------------------------------------------------------------------------------------------------------------- combinations


def combinations(folder: Path) -> list[str]:
    tables: dict[str, Table] = {}
    for interaction, cells in ((1.0, 70), (0.5, 70), (0.0, 70), (1.0, 25)):
        for seed in (10, 11, 12, 13):
            screen, hidden = demo.screen_with_hidden_pairs(seed, interaction=interaction, cells_per_condition=cells)
            obs, counts = screen.adata.obs, screen.adata.X
            expression = log_normalised(counts, np.asarray(counts.sum(1), dtype=float).ravel()).toarray()
            train = (obs["split"] == "train").to_numpy()
            rules = rules_for_pairs(expression[train], *(obs[key].astype(str).to_numpy()[train] for key in ("perturbation", "cell_type")))
            truth = {name: screen.true_mean(name) - screen.true_mean("control") for name in hidden}
            error = {t: np.mean([np.sqrt(np.mean((rule(n) - truth[n]) ** 2)) for n in hidden]) for t, rule in rules.items()}
            for title, value in error.items():
                table = tables.setdefault(f"interaction {interaction:g}, {cells} cells", {})
                table.setdefault(title, []).append(float(value / error["sum of the parts"]))
            print(interaction, cells, seed, error, flush=True)
    lines = ["| rule | " + " | ".join(f"simulated, {name}" for name in tables) + " | Norman: r / error |", "|---" * (len(tables) + 2) + "|"]
    norman = pairs_of_norman(folder)
    for title in norman:
        cells_of = [f"{np.mean(table[title]):.3f} ({', '.join(f'{x:.2f}' for x in table[title])})" for table in tables.values()]
        lines.append(f"| {title} | {' | '.join(cells_of)} | {norman[title][0]:.4f} / {norman[title][1]:.4f} |")
    return lines


def rules_for_pairs(expression: NDArray, condition: NDArray, context: NDArray) -> dict[str, Callable[[str], NDArray]]:
    """Estimators of the effect of a pair, mean over contexts, from training cells."""
    names, levels = ["control", *sorted(set(condition) - {"control"})], sorted(set(context))
    code, level = (np.array([known.index(x) for x in values]) for known, values in ((names, condition), (levels, context)))
    specs = [ConditionSpec(), *(_spec(name) for name in names[1:])]
    measured = MeasuredEffects.measure(lambda rows: expression[rows], specs, code, [(name,) for name in levels], level)
    mixed = KrigedRule(measured, 0.0)
    learnt = mixed.combinations
    assert learnt.pooled is not None
    factor = replace(learnt.interactions, weight=np.zeros_like(learnt.interactions.weight))
    variants = {
        "sum of the shrunk parts": replace(learnt, interactions=Interactions.none(), weight=0.0),
        "the same times one factor": replace(learnt, interactions=factor, weight=0.0),
        "factor and interactions": replace(learnt, weight=0.0),
        "half of both": replace(learnt, weight=0.5),
        "parts pooled over combinations": replace(learnt, weight=1.0),
        "**mixed by how they did on what was left out**": learnt,
    }

    def averaged(combinations: Combinations) -> Callable[[str], NDArray]:
        rule = KrigedRule(measured, 0.0)
        rule.__dict__["combinations"] = combinations
        at = list(zip(measured.levels, measured.control.astype(float), strict=True))
        return lambda name: np.mean([rule.effect(_spec(name), known, control) for known, control in at], 0)

    return {"sum of the parts": lambda name: mixed.anchor(_spec(name)), **{title: averaged(c) for title, c in variants.items()}}


def _spec(name: str) -> ConditionSpec:
    """`A+B` without dose and time."""
    parts = tuple(sorted(name.split("+")))
    return ConditionSpec(parts, (1.0,) * len(parts))


def pairs_of_norman(folder: Path) -> dict[str, NDArray]:
    """Correlation and squared error of each rule."""
    expression, condition, _, genes = load("norman", folder)
    scores: dict[str, list[tuple[float, float]]] = {}
    before = expression[condition == "control"].mean(0)
    for without in BOTH_SEEN:
        for target in BOTH_SEEN:
            if target == without:
                continue
            train = ~np.isin(condition, [without, target])
            rules = rules_for_pairs(expression[train], condition[train], np.full(train.sum(), ""))
            kept = np.array([gene not in target.split("+") for gene in genes])
            real = (expression[condition == target].mean(0) - before)[kept]
            for title, rule in rules.items():
                found = (np.maximum(before + rule(target), 0) - before)[kept]
                scores.setdefault(title, []).append((float(np.corrcoef(found, real)[0, 1]), float(((found - real) ** 2).sum())))
    return {title: np.mean(values, 0) for title, values in scores.items()}


def tuned(folder: Path) -> list[str]:
    torch.set_num_threads(1)
    return backbones(folder, Path(__file__).parent / "results" / "search_backbones.json")


PARTS = {"contexts": contexts, "elsewhere": elsewhere, "shrinkage": shrinkage, "combinations": combinations, "backbones": tuned}
PAGE = Path(__file__).parent / "results" / "search.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    sections = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip().split("\n") for part in before.split("\n## ")[1:]}
    for name in options.only:
        sections[name] = PARTS[name](options.data)
        text = ["# What the default recipe was chosen on", "", "Written by `benchmarks/search.py`; what each part is stands there.", ""]
        for known in PARTS:
            text += [f"## {known}", "", *sections[known], ""] if known in sections else []
        PAGE.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
