"""Measured effects as they would be in another context: shrunk by their noise, carried over by how similar the contexts are.

The effect of a condition on a feature (a gene, a state coordinate) is modelled over contexts as::

    effect(context) = mean + deviation(context),    measured = effect + sampling noise of known variance

with a Gaussian-process deviation whose covariance between two contexts is ``between * (k(a, b) + SLOPE * own(a) * own(b))``: `k`
falls with the distance of the contexts' control means, and `own` is the feature's own standardised level in the controls, so that an
effect may depend on how much of a gene there was. The prediction is the best linear unbiased one (kriging; Henderson, Biometrics 1975),
per feature, from all contexts in which the condition was measured. With one context it is the measured effect, shrunk. Strong features
follow the most similar contexts as far as that was right for contexts left out (`counterflow.effects.similarity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.effects.additive import AdditiveRule, MeanEffects
from counterflow.effects.combinations import Combinations
from counterflow.effects.moments import group_moments
from counterflow.effects.pooling import parts_of
from counterflow.effects.similarity import similar_mean, strong
from counterflow.effects.stacking import learnt_weight
from counterflow.errors import DataError
from counterflow.types import ConditionSpec

Level = tuple[str, ...]  # of match_keys

SLOPE = 0.3  # variance explained by the feature's own level, relative to that of the smooth deviation
REACH = 0.5  # of the kernel: exp(-REACH * (distance / median distance)^2)
OWN_LIMIT = 2.0  # standard deviations
PRIOR_CELLS = 10.0  # how many cells' worth the pooled variance of a feature counts in that of a group
MOST_CONTEXTS = 16  # the nearest ones are read: bounds the time where there are hundreds
FEWEST = 3  # other contexts, to learn from one that is left out
MOST_JUDGED = 32  # conditions in a context that are left out, one by one
FEWEST_PARTS = 3  # to tell what a mean effect is worth for another perturbation
LEAST_TRUST = 0.1  # however noisy a condition, this share of its effect is kept: its direction is the best guess there is


@dataclass(frozen=True)
class MeasuredEffects:
    """Mean effects of every measured (condition, context), with the variance of their error. U units, F features, C contexts."""

    specs: tuple[ConditionSpec, ...]  # distinct conditions, without the control
    levels: tuple[Level, ...]  # contexts that have controls
    spec_of: NDArray[np.int64]  # U
    level_of: NDArray[np.int64]  # U
    effect: NDArray[np.float32]  # U x F
    noise: NDArray[np.float32]  # U x F
    control: NDArray[np.float32]  # C x F, mean of the controls

    @classmethod
    def measure(
        cls,
        values: Callable[[NDArray], NDArray | sparse.csr_matrix],
        specs: Sequence[ConditionSpec],
        condition: NDArray,
        contexts: Sequence[Level],
        context: NDArray,
        blocks: Iterable[NDArray] | None = None,
    ) -> MeasuredEffects:
        """From cells: `values` gives rows of the space (n x F); condition 0 is the control. Contexts without controls are ignored.

        `blocks`: see `counterflow.effects.moments`.
        """
        moments = group_moments(values, condition, context, blocks)
        pairs = list(moments)
        total = sum(n for n, _, _ in moments.values())
        pooled = sum(n * variance for n, _, variance in moments.values()) / max(total, 1)

        def error(pair: tuple[int, int]) -> NDArray:
            n, _, variance = moments[pair]
            return (n * variance + PRIOR_CELLS * pooled) / (n + PRIOR_CELLS) / n

        with_controls = sorted(c for code, c in pairs if code == 0)
        units = [(code, c) for code, c in pairs if code != 0 and c in with_controls]
        if not units:
            raise DataError("no perturbed cell shares the levels of match_keys with a control cell: drop a key from match_keys")
        codes = sorted({code for code, _ in units})
        return cls(
            tuple(specs[code] for code in codes),
            tuple(tuple(contexts[c]) for c in with_controls),
            np.array([codes.index(code) for code, _ in units], dtype=np.int64),
            np.array([with_controls.index(c) for _, c in units], dtype=np.int64),
            np.array([moments[unit][1] - moments[0, unit[1]][1] for unit in units], dtype=np.float32),
            np.array([error(unit) + error((0, unit[1])) for unit in units], dtype=np.float32),
            np.array([moments[0, c][1] for c in with_controls], dtype=np.float32),
        )

    def units(self, kept: NDArray[np.bool_]) -> MeasuredEffects:
        """Some of them, with the conditions and contexts they are of."""
        specs, levels = np.unique(self.spec_of[kept]), np.unique(self.level_of[kept])
        return MeasuredEffects(
            tuple(self.specs[s] for s in specs),
            tuple(self.levels[c] for c in levels),
            np.searchsorted(specs, self.spec_of[kept]),
            np.searchsorted(levels, self.level_of[kept]),
            self.effect[kept],
            self.noise[kept],
            self.control[levels],
        )

    def on(self, features: NDArray[np.int64]) -> MeasuredEffects:
        """The same on some features."""
        return replace(self, effect=self.effect[:, features], noise=self.noise[:, features], control=self.control[:, features])


def shrunk(effect: NDArray, noise: NDArray) -> NDArray:
    """An effect (F) measured with this variance of error: less where it drowns, gene by gene and as a whole."""
    own = np.divide(effect**2, effect**2 + noise, out=np.zeros_like(effect), where=effect != 0)
    return effect * _whole(effect, noise) * np.sqrt(own)


def _whole(effect: NDArray, noise: NDArray) -> float:
    """James-Stein: the share of the squared effect that noise does not explain."""
    return max(1.0 - float(noise.sum()) / max(float((effect**2).sum()), 1e-12), LEAST_TRUST)


class KrigedRule:
    """The additive rule of a context, from effects carried over from the contexts they were measured in.

    Parameters
    ----------
    measured
        Of the training cells.
    floor
        Smallest value a feature can have (0 for log expression): no effect goes below it. ``None`` for coordinates of a state.
    """

    def __init__(self, measured: MeasuredEffects, floor: float | None = None) -> None:
        self.measured, self.floor = measured, floor
        self.between = self._between()
        self._rules: dict[Level | bytes, AdditiveRule] = {}
        self._row = {spec: i for i, spec in enumerate(measured.specs)}
        self._alone = frozenset(spec.parts[0] for spec in measured.specs if len(spec.parts) == 1)

    @cached_property
    def anchor(self) -> AdditiveRule:
        """The additive rule of the plain means over contexts: what a flow is trained on top of."""
        m = self.measured
        means = np.array([m.effect[m.spec_of == s].astype(np.float64).mean(0) for s in range(len(m.specs))])
        return AdditiveRule.fit(MeanEffects(m.specs, means))

    def at(self, level: Level, control: NDArray | None = None) -> AdditiveRule:
        """The rule in a context; `control` (F), the mean of its controls, is needed only where training has none of that level."""
        known = level in self.measured.levels
        if known:
            control = self.measured.control[self.measured.levels.index(level)]
        elif control is None:
            raise DataError(f"no control cell of {level} was in training: give its controls")
        key = level if known else np.asarray(control, dtype=np.float64).tobytes()
        if key in self._rules:
            return self._rules[key]
        effects = np.array([self._effect(s, level, control) for s in range(len(self.measured.specs))])
        rule = AdditiveRule.fit(MeanEffects(self.measured.specs, effects))
        rule = replace(rule, generic=_predictive(rule) * rule.generic)
        self._rules = {name: kept for name, kept in self._rules.items() if known or isinstance(name, tuple)}  # of strangers, the last
        self._rules[key] = rule
        return rule

    def effect(self, spec: ConditionSpec, level: Level, control: NDArray) -> NDArray[np.float64]:
        """Effect (F) of `spec` on controls with this mean: as measured (and shrunk) if it was, else the sum of its parts."""
        if spec in self._row:
            value = self._effect(self._row[spec], level, control)
        else:
            value = self.at(level, control)(spec)
            if len(spec.parts) > 1 and self._alone >= set(spec.parts):
                value = self.combinations(spec, value, np.array([self._average(part) for part in parts_of(spec)]))
        return value if self.floor is None else np.maximum(control + value, self.floor) - control

    @cached_property
    def _average(self) -> AdditiveRule:
        """Parts as measured alone, shrunk, mean over contexts."""
        singles = [i for i, spec in enumerate(self.measured.specs) if len(spec.parts) == 1]
        effects = np.array([shrunk(*self._mean(i)) for i in singles])
        return AdditiveRule.fit(MeanEffects(tuple(self.measured.specs[i] for i in singles), effects))

    def _mean(self, spec: int) -> tuple[NDArray, NDArray]:
        """Effect of a condition and variance of its error, mean over contexts."""
        units = self.measured.spec_of == spec
        return self.measured.effect[units].astype(np.float64).mean(0), self.measured.noise[units].astype(np.float64).mean(0) / units.sum()

    @cached_property
    def combinations(self) -> Combinations:
        """What is learnt from combinations, each at its mean over contexts."""
        m = self.measured
        effects, noise = (np.array(values) for values in zip(*(self._mean(i) for i in range(len(m.specs))), strict=True))
        noise = noise.mean(1)
        errors: dict[str, list[float]] = {}
        for spec, error in zip(m.specs, noise, strict=True):
            if len(spec.parts) == 1:
                errors.setdefault(spec.parts[0], []).append(float(error))
        known = {part for spec in m.specs if len(spec.parts) > 1 for part in parts_of(spec) if part.parts[0] in self._alone}
        parts = {part: (self._average(part), float(np.mean(errors[part.parts[0]]))) for part in sorted(known)}
        return Combinations.fit(parts, m.specs, effects, noise)

    def _effect(self, spec: int, level: Level, control: NDArray) -> NDArray:
        """One measured condition in a context with these controls (F)."""
        m = self.measured
        units = np.flatnonzero(m.spec_of == spec)
        if len(units) == 1:
            return shrunk(m.effect[units[0]].astype(np.float64), m.noise[units[0]].astype(np.float64))
        kriged, similar = self._two(spec, units, control)
        if level in [m.levels[c] for c in m.level_of[units]]:
            return kriged
        return kriged + self.similarity[strong(kriged)] * (similar - kriged)

    @cached_property
    def similarity(self) -> NDArray[np.float64]:
        """How far the most similar contexts are followed, for features with weak and with strong effects."""
        m = self.measured
        counts = np.bincount(m.spec_of)[m.spec_of]
        units = np.flatnonzero(counts > FEWEST)
        missed: tuple[list[NDArray], list[NDArray]] = ([], [])
        beyond: tuple[list[NDArray], list[NDArray]] = ([], [])
        for unit in units[np.unique(np.linspace(0, len(units) - 1, min(MOST_JUDGED, len(units))).astype(int))]:
            spec = int(m.spec_of[unit])
            others = np.setdiff1d(np.flatnonzero(m.spec_of == spec), unit)
            kriged, similar = self._two(spec, others, m.control[m.level_of[unit]].astype(np.float64))
            group = strong(kriged)
            for g in (0, 1):
                missed[g].append((m.effect[unit] - kriged)[group == g])
                beyond[g].append((similar - kriged)[group == g])
        return np.array([learnt_weight(missed[g], beyond[g]) for g in (0, 1)])

    def _two(self, spec: int, units: NDArray, control: NDArray) -> tuple[NDArray, NDArray]:
        """The effect (F) of a condition as kriged from `units`, and as in the most similar of their contexts."""
        m = self.measured
        distance = np.sqrt(((m.control[m.level_of[units]] - control) ** 2).sum(1))
        nearest = np.argsort(distance, kind="stable")[:MOST_CONTEXTS]
        units, distance = units[nearest], distance[nearest]
        return self._kriged(spec, units, control), similar_mean(distance, m.effect[units].astype(np.float64))

    def _kriged(self, spec: int, units: NDArray, control: NDArray) -> NDArray:
        """The best linear prediction (F) from measured `units`."""
        m = self.measured
        at = np.vstack([m.control[m.level_of[units]], control[None]])
        n = len(units)
        covariance = self._covariance(at)  # F x (n + 1) x (n + 1)
        y, noise = m.effect[units].astype(np.float64), m.noise[units].astype(np.float64)
        scale = self.between[spec][:, None, None]
        inverse = np.linalg.inv(scale * covariance[:, :n, :n] + np.einsum("uf,uv->fuv", noise + 1e-12, np.eye(n)))
        weight = inverse.sum((1, 2))
        mean = np.einsum("fuv,vf->f", inverse, y) / weight
        mean = mean * _whole(mean, 1.0 / weight) * np.clip(1.0 - 1.0 / np.maximum(weight * mean**2, 1e-12), 0.0, 1.0)
        left = np.einsum("fuv,vf->fu", inverse, y - mean)
        return mean + self.between[spec] * np.einsum("fu,fu->f", covariance[:, n, :n], left)

    def _covariance(self, at: NDArray) -> NDArray:
        """Covariance of the deviations (F x n x n) between contexts with control means `at` (n x F), in units of `between`."""
        kernel = np.exp(-REACH * (_distances(at) / self._unit) ** 2)
        own = np.clip((at - self._center) / self._spread, -OWN_LIMIT, OWN_LIMIT)
        return kernel[None] + SLOPE * np.einsum("uf,vf->fuv", own, own)

    def _between(self) -> dict[int, NDArray]:
        """Variance (F) of the deviations of each condition measured in several contexts: half its own, half pooled over features."""
        m = self.measured
        distances = _distances(m.control)[np.triu_indices(len(m.control), 1)]
        self._unit = max(float(np.median(distances)) if len(distances) else 1.0, 1e-6 * float(np.linalg.norm(m.control[0])), 1e-12)
        self._center, self._spread = m.control.mean(0), m.control.std(0) + 0.05
        raw, size, error = {}, {}, {}
        for spec in range(len(m.specs)):
            units = np.flatnonzero(m.spec_of == spec)
            n = len(units)
            if n < 2:
                continue
            kernel = np.exp(-REACH * (_distances(m.control[m.level_of[units]]) / self._unit) ** 2)
            alike = (kernel.sum() - n) / (n * (n - 1))
            y, noise = m.effect[units].astype(np.float64), m.noise[units].astype(np.float64).mean(0)
            raw[spec] = (y.var(0, ddof=1) - noise) / max(1.0 - alike, 0.05)
            size[spec], error[spec] = np.maximum(y.mean(0) ** 2 - noise / n, 0), noise
        if not raw:
            return {}
        design = np.stack([np.concatenate(list(size.values())), np.concatenate(list(error.values()))], 1)
        slope = np.maximum(np.linalg.lstsq(design, np.concatenate(list(raw.values())), rcond=None)[0], 0)
        result = {}
        for spec in raw:
            positive = np.maximum(raw[spec], 0)
            real = max(float(raw[spec].sum()), 0.0) / max(float(positive.sum()), 1e-12)  # 0 where noise explains it all
            result[spec] = real * (0.5 * positive + 0.5 * (slope[0] * size[spec] + slope[1] * error[spec]))
        return result


def _predictive(rule: AdditiveRule) -> float:
    """By how much the mean effect of the other parts has to be multiplied to fit the one left out: what it is worth for an unseen one."""
    parts = np.array([np.mean(list(levels.values()), 0) for levels in rule.curves.values()])
    if len(parts) < FEWEST_PARTS:
        return 1.0
    others = (parts.sum(0) - parts) / (len(parts) - 1)
    return float(np.clip((parts * others).sum() / max(float((others**2).sum()), 1e-12), 0.0, 1.0))


def _distances(points: NDArray) -> NDArray:
    square = (points.astype(np.float64) ** 2).sum(1)
    return np.sqrt(np.maximum(square[:, None] + square[None] - 2 * points.astype(np.float64) @ points.astype(np.float64).T, 0))
