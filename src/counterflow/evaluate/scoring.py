"""The scores of one unit: every row (models, baselines, ceiling) against the same random halves of the real cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from counterflow.evaluate.metrics import compute, coverage, differential, energy, needs, welch_t
from counterflow.evaluate.truth import Truth, Unit, project

CEILING = "split_half"
REPLICATE = "replicate"
"""A ceiling for effects in which nothing is shared: each half of the perturbed cells is measured from its own half of the controls."""
RANKED = ("predicted_effects", "predicted_means")  # metrics that need these look at all conditions of a context
FEWEST_RANKED = 5  # conditions: a rank among fewer says nothing
SLOW = {"c2st_gene": 200, "c2st_pca": 500}  # trained on at most this many cells, and on the first halving only
MOST_COMPARED = 1000


@dataclass
class UnitScores:
    """Scores of one unit, and the means that ranks are computed from afterwards."""

    values: dict[str, dict[str, float]]  # row -> metric -> mean over halvings
    predicted: dict[str, NDArray]  # row -> [halvings x G]
    real: NDArray  # [halvings x G]: mean of the half that is the truth
    replicate_real: NDArray  # [halvings x G]: the same for the replicate row, as if its half of the controls had the mean of all
    effect_size: float  # |d_Y| of all real cells, over the genes kept
    n_cells: int
    control: NDArray = field(repr=False)  # G


def score_unit(truth: Truth, unit: Unit, cells: Mapping[str, NDArray], metrics: Sequence[str], n_halvings: int, seed: int) -> UnitScores:
    """Score predicted `cells` (row -> m x G) of one unit. The ceilings, the other half of the real cells, are added here."""
    real, control = truth.log(unit.real), truth.log(truth.contexts[unit.context_code].sources)
    kept, origin = unit.kept, control.mean(0, dtype=np.float64)
    whole_mean = real.mean(0, dtype=np.float64)
    fixed = {
        "control_mean": origin[kept],
        "reference_mean": truth.reference_mean(unit.context_code)[kept],
        "abs_t": np.abs(welch_t(real[:, kept], control[:, kept])),
    }
    pca = truth.contexts[unit.context_code].pca
    wanted = [name for name in metrics if not set(needs(name)) & set(RANKED)]
    per_half: dict[str, list[dict[str, float]]] = {}
    predicted_means: dict[str, list[NDArray]] = {}
    real_means, replicate_means = [], []
    for half in range(n_halvings):
        rng = np.random.default_rng([seed, unit.number, half])
        shuffled = rng.permutation(len(real))
        other, true = real[shuffled[: len(real) // 2]], real[shuffled[len(real) // 2 :]]
        rows = {**cells, CEILING: other}
        n = min(MOST_COMPARED, len(true), len(control), *(len(x) for x in rows.values()))
        some_true = true[np.sort(rng.choice(len(true), n, replace=False))]
        real_means.append(true.mean(0, dtype=np.float64))
        truth_side = {"real_mean": real_means[-1][kept], "real": some_true[:, kept], "real_pcs": project(pca, some_true, kept)}
        if any("real_de" in needs(name) for name in wanted):
            truth_side["real_de"] = differential(some_true[:, kept], control[:, kept])
        for name, predicted in rows.items():
            draw = np.random.default_rng([seed, unit.number, half, 1])  # equal draws for rows that move the same control cells
            once = len(predicted) if name == CEILING else min(len(predicted), len(control))  # clouds hold no control twice
            some = predicted[draw.choice(once, n, replace=False)]  # in random order: classifiers take the first of them
            mean = predicted.mean(0, dtype=np.float64)
            predicted_means.setdefault(name, []).append(mean)
            inputs = {**fixed, **truth_side, "predicted_mean": mean[kept], "predicted": some[:, kept]}
            inputs["predicted_pcs"] = project(pca, some, kept)
            if "real_de" in truth_side:
                inputs["predicted_de"] = differential(some[:, kept], control[:, kept])
            scores = {metric: _score(metric, inputs, seed) for metric in wanted if half == 0 or metric not in SLOW}
            scores["effect_scale"] = effect_scale(mean[kept] - fixed["control_mean"], truth_side["real_mean"] - fixed["control_mean"])
            per_half.setdefault(name, []).append(scores)
        mine, theirs = _origins(control, rng)
        repeated, repeated_real = other.mean(0, dtype=np.float64) - mine + origin, real_means[-1] - theirs + origin
        replicate_means.append(repeated_real)
        predicted_means.setdefault(REPLICATE, []).append(repeated)
        inputs = {**fixed, "predicted_mean": repeated[kept], "real_mean": repeated_real[kept]}
        effects = [metric for metric in wanted if set(needs(metric)) <= inputs.keys() and "control_mean" in needs(metric)]
        per_half.setdefault(REPLICATE, []).append({metric: _score(metric, inputs, seed) for metric in effects})
    return UnitScores(
        {name: _mean_over_halvings(of_row) for name, of_row in per_half.items()},
        {name: np.array(means) for name, means in predicted_means.items()},
        np.array(real_means),
        np.array(replicate_means),
        float(np.linalg.norm((whole_mean - origin)[kept])),
        len(real),
        origin,
    )


def _origins(control: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Means of two disjoint random halves of the control cells."""
    shuffled = rng.permutation(len(control))
    half = len(control) // 2
    return control[shuffled[:half]].mean(0, dtype=np.float64), control[shuffled[half:]].mean(0, dtype=np.float64)


def _score(metric: str, inputs: Mapping[str, NDArray], seed: int) -> float:
    if metric not in SLOW:
        return compute(metric, inputs)
    few = {name: inputs[name][: SLOW[metric]] if name in needs(metric) else inputs[name] for name in inputs}
    return compute(metric, few, seed=seed)


def effect_scale(predicted: NDArray, real: NDArray) -> float:
    """By what factor the predicted effect has to be multiplied to fit the real one best: below 1 it is too large; nan for none."""
    squared = float(predicted @ predicted)
    return float(predicted @ real) / squared if squared > 1e-12 * max(float(real @ real), 1e-12) else float("nan")


def _mean_over_halvings(scores: list[dict[str, float]]) -> dict[str, float]:
    result = {}
    for metric in scores[0]:
        values = np.array([of_half[metric] for of_half in scores if metric in of_half], dtype=float)
        result[metric] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return result


def rank_scores(truth: Truth, scored: Mapping[int, UnitScores], metrics: Sequence[str]) -> dict[tuple[int, str, str], float]:
    """(unit, row, metric) -> value, for the metrics that rank a prediction among all real conditions of its context.

    Conditions that are not tested stand in the ranking with all their real cells. Two diagnostics are added. `sameness` says how alike
    the predicted effects of a context are: the mean cosine of one with the others; 1 is one generic response. `own_rank` is
    `pds_cosine` among the tested conditions only: where these are strong and the others are not, effects of the wrong condition
    rank high among all, but not here.
    """
    ranked = [name for name in metrics if set(needs(name)) & set(RANKED)]
    result: dict[tuple[int, str, str], float] = {}
    for code in truth.contexts:
        units = [unit for unit in truth.units if unit.context_code == code and unit.number in scored]
        if not units:
            continue
        measured = truth.condition_means(code)
        codes = list(measured)
        at = {unit.number: codes.index(truth.screen.conditions.index(unit.spec)) for unit in units}
        origin = scored[units[0].number].control
        genes = [_columns(truth, truth.screen.conditions[c]) for c in codes]
        n_halvings = len(scored[units[0].number].real)
        for row in scored[units[0].number].predicted:
            sums: dict[tuple[int, str], list[float]] = {}
            for half in range(n_halvings):
                real = np.array([measured[c] for c in codes])
                for unit in units:
                    of_unit = scored[unit.number]
                    real[at[unit.number]] = (of_unit.replicate_real if row == REPLICATE else of_unit.real)[half]
                predicted = real.copy()  # rows of conditions that are not tested are placeholders: their scores are not read
                for unit in units:
                    predicted[at[unit.number]] = scored[unit.number].predicted[row][half]
                inputs = {
                    "predicted_effects": predicted - origin, "real_effects": real - origin,
                    "predicted_means": predicted, "real_means": real,
                }  # fmt: skip
                tested = sorted(at.values())
                if len(tested) >= FEWEST_RANKED:
                    among = _rank_among(predicted[tested] - origin, real[tested] - origin, [genes[i] for i in tested])
                    for unit in units:
                        sums.setdefault((unit.number, "own_rank"), []).append(float(among[tested.index(at[unit.number])]))
                for metric in ranked:
                    options = {"leave_out": genes} if metric.startswith("pds") and any(genes) else {}
                    values = compute(metric, inputs, **options)
                    for unit in units:
                        sums.setdefault((unit.number, metric), []).append(float(values[at[unit.number]]))
            for (number, metric), values in sums.items():
                result[number, row, metric] = float(np.mean(values))
            same = _sameness(np.array([scored[unit.number].predicted[row].mean(0) - origin for unit in units]))
            for unit, value in zip(units, same, strict=True):
                result[unit.number, row, "sameness"] = float(value)
    return result


def _columns(truth: Truth, spec: tuple) -> tuple[int, ...]:
    genes = truth.screen.genes
    return tuple(genes.index(part) for part in dict.fromkeys(spec[0]) if part in genes)


def _sameness(effects: NDArray) -> NDArray:
    n = len(effects)
    if n < 2:
        return np.full(n, np.nan)
    length = np.linalg.norm(effects, axis=1, keepdims=True)
    unit = np.divide(effects, length, out=np.zeros_like(effects), where=length > 1e-9)
    cosine = unit @ unit.T
    return (cosine.sum(1) - np.diag(cosine)) / (n - 1)


def self_test(truth: Truth, n_halvings: int, seed: int) -> dict[str, float]:
    """Two halves of the source controls, treated like source and truth: energy should be < .05 and coverage > .9."""
    energies, coverages = [], []
    for code, context in truth.contexts.items():
        cells = truth.log(context.sources)
        pcs = project(context.pca, cells, np.ones(cells.shape[1], dtype=bool))
        for half in range(n_halvings):
            shuffled = np.random.default_rng([seed, code, half]).permutation(len(pcs))[:MOST_COMPARED]
            n = len(shuffled) // 2
            a, b = pcs[shuffled[:n]], pcs[shuffled[n : 2 * n]]
            energies.append(energy(a, b))
            coverages.append(coverage(a, b))
    return {"energy": float(np.nanmean(energies)), "coverage": float(np.nanmean(coverages))}


def _rank_among(predicted: NDArray, real: NDArray, genes: list[tuple[int, ...]]) -> NDArray:
    options = {"leave_out": genes} if any(genes) else {}
    return np.asarray(compute("pds_cosine", {"predicted_effects": predicted, "real_effects": real}, **options))


DIAGNOSTICS = ("effect_scale", "sameness", "own_rank")
