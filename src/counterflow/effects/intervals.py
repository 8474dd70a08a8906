"""How sure a predicted effect is: intervals whose width is learnt from effects that were left out and predicted.

The error of a predicted effect of a gene has a variance that is made of the noise of measuring it, of how much perturbations move this gene
at all, and of the size of the predicted effect; the weights are fitted to squared errors of left-out effects. How many such standard
deviations an interval takes is then the quantile of the errors that occurred (conformal prediction: Vovk, Gammerman & Shafer 2005), each
left-out condition with equal weight, since genes of one condition are not independent (Lee, Barber & Willett 2023), and wider where few
conditions were left out. Every kind of generalisation has its own, and within it the tenth of the genes that are expected to move
most: most genes do nothing, and covering these says little about the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.effects.kriging import PRIOR_CELLS, MeasuredEffects
from counterflow.effects.leaving_out import SIMPLE, LeftOut, prior_of

STRATA = ("most genes", "the tenth that is expected to move most")
FEWEST = 2  # left-out groups of a kind
GRID = np.append(np.arange(1, 100) / 100, [0.995, 0.999])  # coverages whose quantile is kept
FALLBACK = {"combination": ("part", "unknown"), "part": ("unknown",), "level": ("unknown",), "feature": ("unknown",)}
"""Where nothing of a kind could be left out, that of a harder one."""
_LEAST_NOISE = 0.3  # of the nominal one: no interval is narrower than a repeat of the experiment would scatter, nearly
KNOTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # of log expression
N_TERMS = 2 + len(KNOTS)  # of the variance
_DRAWN = 30
_ROUNDS = 5
_FOLDS = 5


@dataclass(frozen=True)
class Certainty:
    """What was learnt for one kind of generalisation."""

    weights: tuple[float, ...]  # of noise, prior and squared effect
    quantiles: tuple[tuple[float, ...], ...]  # of |error| / standard deviation, at `GRID`, for each of the `STRATA`
    n: int  # groups that were left out
    baseline: str  # the best of `SIMPLE` on them

    def reach(self, coverage: float) -> NDArray[np.float64]:
        """How many standard deviations to either side, for each of the `STRATA`."""
        return np.array([np.interp(coverage, GRID, of_stratum) for of_stratum in self.quantiles]) * _for_few(self.n, coverage)


@dataclass(frozen=True)
class Intervals:
    """Learnt on training conditions. G genes."""

    prior: NDArray[np.float32]  # G, how much perturbations move each gene: the variance of true effects
    variance: NDArray[np.float32]  # G, between cells of one condition
    cells: float  # of a condition and context, in the training screen
    controls: float  # of a context
    kinds: dict[str, Certainty]

    @classmethod
    def learn(cls, measured: MeasuredEffects, n_cells: NDArray, n_controls: NDArray, left_out: Iterable[LeftOut]) -> Intervals:
        """From measured effects (their numbers of cells by unit and by context) and the effects that were left out."""
        sizes = 1.0 / n_cells + 1.0 / n_controls[measured.level_of]
        variance = (measured.noise / sizes[:, None]).mean(0)
        by_kind: dict[str, list[LeftOut]] = {}
        for one in left_out:
            by_kind.setdefault(one.kind, []).append(one)
        kinds = {kind: found for kind, some in sorted(by_kind.items()) if (found := _certainty(some)) is not None}
        return cls(
            prior_of(measured).astype(np.float32),
            variance.astype(np.float32),
            float(np.median(n_cells)),
            float(np.median(n_controls)),
            kinds,
        )

    def certainty(self, kind: str) -> Certainty | None:
        """Of a kind of generalisation, or of a harder one; None where nothing is known."""
        return next((self.kinds[name] for name in (kind, *FALLBACK.get(kind, ())) if name in self.kinds), None)

    def noise(self, kind: str, predicted: NDArray, control: NDArray, cells: float | None, draws: int) -> NDArray[np.float64]:
        """Variance of the error (G) of an effect measured on `cells` cells (None: as many as in training; inf: the population's own).

        `predicted`, `control`: variances between the predicted cells and between their controls (G). `draws`: cells whose drawn counts
        the predicted means were set on.
        """
        used, kept = (
            (own * size + PRIOR_CELLS * self.variance) / (size + PRIOR_CELLS)  # as the noise of measured effects
            for own, size in ((predicted, self.cells), (control, self.controls))
        )
        usual = used / self.cells + kept / self.controls
        fresh = usual if cells is None else (used / cells + kept / self.controls if np.isfinite(cells) else np.zeros_like(usual))
        return fresh + used / draws + (usual if kind == "seen" else 0.0)  # what was measured was measured with noise, too

    def spread(self, certainty: Certainty, effect: NDArray, noise: NDArray) -> NDArray[np.float64]:
        """Standard deviation (G) of the error of a predicted effect."""
        return np.sqrt(_terms(noise, self.prior, effect) @ np.array(certainty.weights))

    def strata(self, effect: NDArray) -> NDArray[np.intp]:
        """Which of the `STRATA` each gene is in (G)."""
        return _strata(self.prior, effect)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray]]:
        """JSON and arrays."""
        kinds = {
            kind: {"weights": list(one.weights), "quantiles": [list(q) for q in one.quantiles], "n": one.n, "baseline": one.baseline}
            for kind, one in self.kinds.items()
        }
        described = {"cells": self.cells, "controls": self.controls, "kinds": kinds}
        return described, {"intervals.prior": self.prior, "intervals.variance": self.variance}

    @classmethod
    def from_parts(cls, described: dict[str, Any], arrays: dict[str, NDArray]) -> Intervals:
        """Inverse of `to_parts`."""
        kinds = {
            str(kind): Certainty(
                _floats(one["weights"]), tuple(map(_floats, one["quantiles"])), int(one["n"]), SIMPLE[SIMPLE.index(one["baseline"])]
            )
            for kind, one in described["kinds"].items()
        }
        if any([len(q) for q in one.quantiles] != [len(GRID)] * len(STRATA) for one in kinds.values()):
            raise ValueError(f"intervals need {len(GRID)} quantiles of each kind")
        return cls(arrays["intervals.prior"], arrays["intervals.variance"], float(described["cells"]), float(described["controls"]), kinds)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _certainty(some: list[LeftOut]) -> Certainty | None:
    """Weights from all; quantiles from errors that the weights they are measured by have not seen."""
    groups = sorted({one.group for one in some}, key=repr)
    if len(groups) < FEWEST:
        return None
    terms = [_terms(one.noise, one.prior, one.predicted) for one in some]
    squared = [(one.measured - one.predicted) ** 2 for one in some]
    strata = [_strata(one.prior, one.predicted) for one in some]
    fold = {group: i % _FOLDS for i, group in enumerate(groups)}
    scores: dict[tuple[int, Any], list[NDArray]] = {}
    for held in range(min(_FOLDS, len(groups))):
        inside = [i for i, one in enumerate(some) if fold[one.group] != held]
        weights = _fit(*([of_all[i] for i in inside] for of_all in (terms, squared, strata)))
        for i, one in enumerate(some):
            if fold[one.group] == held:
                score = np.sqrt(squared[i] / np.maximum(terms[i] @ weights, 1e-12))
                for stratum in range(len(STRATA)):
                    scores.setdefault((stratum, one.group), []).append(score[strata[i] == stratum])
    quantiles = tuple(_quantiles([np.concatenate(of_group) for (s, _), of_group in scores.items() if s == k]) for k in range(len(STRATA)))
    errors = [np.mean([((one.measured - one.simple[i]) ** 2).mean() for one in some]) for i in range(len(SIMPLE))]
    return Certainty(_floats(_fit(terms, squared, strata)), quantiles, len(groups), SIMPLE[int(np.argmin(errors))])


def _quantiles(values: list[NDArray]) -> tuple[float, ...]:
    """At `GRID`, of scores by group, each group with equal weight."""
    shares = np.concatenate([np.full(len(of_group), 1.0 / len(of_group)) for of_group in values]) / len(values)
    order = np.argsort(joined := np.concatenate(values))
    at = np.searchsorted(np.cumsum(shares[order]), GRID)
    return _floats(joined[order][np.minimum(at, len(order) - 1)])


def _strata(prior: NDArray, effect: NDArray) -> NDArray[np.intp]:
    """1 for the tenth of the genes (at least one) with the largest expected squared effect, else 0."""
    expected = prior.astype(np.float64) + effect.astype(np.float64) ** 2
    top = np.argsort(-expected, kind="stable")[: max(1, len(expected) // 10)]
    return np.isin(np.arange(len(expected)), top).astype(np.intp)


def _terms(noise: NDArray, prior: NDArray, effect: NDArray) -> NDArray[np.float64]:
    """What the variance of an error is made of (F x terms): noise, prior, and hat functions of the effect's size."""
    size = np.abs(effect.astype(np.float64))
    hats = [np.interp(size, (0.0, *KNOTS), np.eye(len(KNOTS) + 1)[i]) for i in range(1, len(KNOTS) + 1)]
    return np.stack([noise, prior, *hats], -1) + 1e-10


def _fit(terms: list[NDArray], squared: list[NDArray], strata: list[NDArray]) -> NDArray[np.float64]:
    """Non-negative weights of the variance: least squares on relative errors, reweighted by what they give; strata count alike.

    First with one weight for the squared effect, then with a curve over its size that is drawn to the square by `_DRAWN` genes' worth:
    large effects are few, and often surer than in proportion.
    """
    x, y, stratum = np.concatenate(terms), np.concatenate(squared), np.concatenate(strata)
    share = np.sqrt(len(y) / len(STRATA) / np.maximum(np.bincount(stratum, minlength=len(STRATA)), 1))[stratum]
    square = np.array(KNOTS) ** 2
    whole = _non_negative(np.column_stack([x[:, :2], x[:, 2:] @ square]), y, share)
    drawn = np.diag(np.concatenate([[0.0, 0.0], np.ones(len(KNOTS))]))[2:]
    aim = whole[2] * square
    fixed = np.concatenate([np.zeros(len(y)), np.sqrt(_DRAWN) / (aim + 1e-9 + 1e-3 * aim)])
    return _non_negative(np.vstack([x, drawn]), np.concatenate([y, aim]), np.append(share, np.ones(len(aim))), fixed)


def _non_negative(x: NDArray, y: NDArray, share: NDArray, fixed: NDArray | None = None) -> NDArray[np.float64]:
    """Weights of the columns; rows with a `fixed` importance keep it, the others count by `share` and in relation to what is fitted."""
    from scipy.optimize import nnls

    scale = x.sum(1)
    for _ in range(_ROUNDS):
        importance = share / np.maximum(scale, 1e-12)
        importance = importance if fixed is None else np.where(fixed > 0, fixed, importance)
        weights = nnls(x * importance[:, None], y * importance)[0]
        weights[0] = max(weights[0], _LEAST_NOISE)
        scale = x @ weights + 1e-12
    return weights


def _for_few(n: int, coverage: float) -> float:
    """Student's t over the normal quantile: n conditions tell a spread only so well."""
    from scipy.stats import norm, t

    upper = (1.0 + coverage) / 2.0
    return float(t.ppf(upper, n) / norm.ppf(upper))
