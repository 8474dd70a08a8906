"""What the default recipe's mean was chosen on: every estimator that was tried, on conditions that no table of results holds out.

::

    python benchmarks/search.py [--only contexts shrinkage combinations] [--data FOLDER]

contexts
    Kang: a cell type V is predicted from five others, without a sixth T (42 ordered pairs). For a test on T only the six pairs that leave T
    out count, and the order of the estimators is the same for all seven T (column ``worst T``).
shrinkage
    Norman singles, Schraivogel, McFaline, Kang, A549: an effect measured on half of the cells predicts that of the other half (5 halvings).
combinations
    Simulated screens 10 to 13, which no table shows: error to the true mean of hidden pairs, relative to the additive rule.

Written to ``benchmarks/results/search.md``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from accuracy import FILES, SETUP
from numpy.typing import NDArray

import counterflow as cf
from counterflow import demo
from counterflow.data.matrix import log_normalised
from counterflow.effects import kriging
from counterflow.effects.interactions import Interactions
from counterflow.effects.kriging import KrigedRule, MeasuredEffects, shrunk
from counterflow.types import ConditionSpec

Table = dict[str, list[float]]
IFNB = ConditionSpec(("IFNb",), (1.0,))
GRID = {"REACH": (0.25, 0.5, 1.0, 2.0), "SLOPE": (0.0, 0.1, 0.3, 0.6, 1.0), "PRIOR_CELLS": (1.0, 10.0)}


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

    def kriged(train: list[int], target: int) -> NDArray:
        rows = np.flatnonzero(np.isin(context, [types[t] for t in train]) | (is_control & (context == types[target])))
        levels = sorted(set(context[rows]))
        code = np.array([levels.index(level) for level in context[rows]])
        measured = MeasuredEffects.measure(
            lambda r: expression[rows[r]], [ConditionSpec(), IFNB], np.where(is_control[rows], 0, 1), [(level,) for level in levels], code
        )
        return KrigedRule(measured, 0.0).effect(IFNB, (types[target],), control[target])

    rows = [scored("mean of the contexts", mean, effect), scored("the same, not below zero", clipped(mean), effect)]
    rows += [scored(f"similar contexts, strength {s:g}", clipped(similar(s)), effect) for s in (1.0, 2.0, 3.0, 4.0, 6.0)]
    rows.append(scored("**kriging, as it is**", kriged, effect))
    for name, values in GRID.items():
        kept = getattr(kriging, name)
        for value in values:
            setattr(kriging, name, value)
            rows.append(scored(f"kriging, {name} {value:g}" + (" (chosen)" if value == kept else ""), kriged, effect))
        setattr(kriging, name, kept)
    return ["| estimator | pearson_delta | squared error | worst T | best T |", "|---|---|---|---|---|", *rows]


def scored(title: str, rule: Callable[[list[int], int], NDArray], effect: NDArray) -> str:
    """Mean over the 42 pairs, and over the pairs of each left-out T."""
    n = len(effect)
    found = []
    for test in range(n):
        for target in range(n):
            if target != test:
                predicted = rule([k for k in range(n) if k not in (test, target)], target)
                missed = float(((predicted - effect[target]) ** 2).sum())
                found.append((test, float(np.corrcoef(predicted, effect[target])[0, 1]), missed))
    table = np.array(found)
    per_test = [table[table[:, 0] == test, 1].mean() for test in range(n)]
    print(title, per_test, flush=True)
    return f"| {title} | {table[:, 1].mean():.4f} | {table[:, 2].mean():.1f} | {min(per_test):.3f} | {max(per_test):.3f} |"


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
    del folder
    table: Table = {}
    for seed in (10, 11, 12, 13):
        screen, hidden = demo.screen_with_hidden_pairs(seed)
        adata = screen.adata
        expression = log_normalised(adata.X, np.asarray(adata.X.sum(1), dtype=float).ravel()).toarray()
        condition, kind = adata.obs["perturbation"].astype(str).to_numpy(), adata.obs["cell_type"].astype(str).to_numpy()
        controls = {t: expression[(condition == "control") & (kind == t)].mean(0) for t in set(kind)}
        left = expression - np.array([controls[t] for t in kind])
        train = (adata.obs["split"] == "train").to_numpy()
        effect, noise = {}, {}
        for name in sorted(set(condition[train]) - {"control"}):
            cells = left[train & (condition == name)]
            effect[name], noise[name] = cells.mean(0), cells.var(0, ddof=1) / len(cells)
        singles, pairs = [n for n in effect if "+" not in n], [n for n in effect if "+" in n]
        raw = np.array([effect[n] for n in singles])
        parts = np.array([shrunk(effect[n], noise[n]) for n in singles])
        members = {n: tuple(singles.index(p) for p in n.split("+")) for n in [*pairs, *hidden]}
        errors = np.array([noise[n].mean() + sum(noise[p].mean() for p in n.split("+")) for n in pairs])
        fit = Interactions.fit(parts, [members[n] for n in pairs], np.array([effect[n] for n in pairs]), errors)
        before = screen.true_mean("control")
        rules: dict[str, Callable[[tuple[int, ...]], NDArray]] = {
            "sum of the parts": lambda m, raw=raw: raw[list(m)].sum(0),
            "sum of the shrunk parts": lambda m, parts=parts: parts[list(m)].sum(0),
            "the same times one factor": lambda m, parts=parts, fit=fit: fit.factor * parts[list(m)].sum(0),
            "**factor and interactions**": lambda m, parts=parts, fit=fit: fit(parts[list(m)].sum(0), m),
        }
        error = {
            t: np.mean([np.sqrt(np.mean((rule(members[n]) - screen.true_mean(n) + before) ** 2)) for n in hidden])
            for t, rule in rules.items()
        }
        for title, value in error.items():
            table.setdefault(title, []).append(float(value / error["sum of the parts"]))
        print(seed, fit.factor, error, flush=True)
    lines = ["| rule | error relative to the sum of the parts: mean | screens 10 to 13 |", "|---|---|---|"]
    return lines + [f"| {t} | {np.mean(v):.3f} | {', '.join(f'{x:.3f}' for x in v)} |" for t, v in table.items()]


PARTS = {"contexts": contexts, "shrinkage": shrinkage, "combinations": combinations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COUNTERFLOW_DATA", beside)))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    text = ["# What the default recipe's mean was chosen on", "", "Written by `benchmarks/search.py`; what each part is stands there.", ""]
    for name in options.only:
        text += [f"## {name}", "", *PARTS[name](options.data), ""]
    (Path(__file__).parent / "results" / "search.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
