"""What a fitted model is asked: what would move cells towards a signature? `CounterFlow` inherits all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from counterflow.answers.effects import EffectAnswers
from counterflow.data.labels import parts as condition_parts
from counterflow.data.screen import Screen, condition_label, describe
from counterflow.data.source import whole
from counterflow.effects.candidates import unmeasured_pairs, unmeasured_singles
from counterflow.effects.intervals import FALLBACK
from counterflow.effects.kriging import Level, MeasuredEffects
from counterflow.effects.leaving_out import MOST_GENES, LeftOut, leave_out
from counterflow.effects.signatures import Signature, gene_weights, signature_of
from counterflow.errors import ConfigError, DataError, near
from counterflow.fitting import exposures
from counterflow.prediction import displaced
from counterflow.recentring import Recentring
from counterflow.requests import SUPPORT, kinds_by_label, matching_rows, requested_specs, support_labels, trusted
from counterflow.sampling import Sampling
from counterflow.spaces.base import log_normalise
from counterflow.types import ConditionIds, ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData

PLATE = 96  # wells
MOST_JUDGED = 1_000  # pairs that the rule is asked about: those with the largest sums of their parts
FLOW_CELLS = 16  # controls that the flow moves for each condition: only what it adds to the rule is read off them
MOST_LEFT_OUT = 32  # effects that are left out in turn
FEWEST = 3  # left-out conditions, parts or contexts, to tell a correlation


class RankingAnswers(EffectAnswers):
    """Questions about what to do next."""

    _left_out_known: tuple[Recentring, bytes, dict[str, list[LeftOut]]] | None = None

    def rank_perturbations(
        self,
        *,
        up: Iterable[str] = (),
        down: Iterable[str] = (),
        signature: Mapping[str, float] | pd.Series | None = None,
        covariates: Mapping[str, str] | None = None,
        most_parts: int = 2,
        top: int = PLATE,
        dose: float | None = None,
        time: float | None = None,
        adata: AnnData | None = None,
    ) -> pd.DataFrame:
        """Which unmeasured perturbations would move cells most towards a signature, best first.

        Candidates are the single perturbations and pairs of which every part was in training and which were not measured in these cells.
        All are ordered by the sum of what their parts do, the best 1,000 by the rule, and the best of these by rule and flow, as far as
        the flow is trusted for their kind. A pair that does much more than the sum of its parts can be missed.

        Parameters
        ----------
        up, down
            Genes that shall rise and fall.
        signature
            Instead of these: weights by gene, such as `measured_effect` or `context_difference` give.
        covariates
            The cells to move, e.g. ``{"cell_type": "NK"}``; without it the mean over all contexts of the control cells.
        most_parts
            1: single perturbations only. 2: pairs, too.
        top
            How many to return: a plate has 96 wells.
        dose, time
            Of every part, for models with doses and times; ``None``: the largest dose that the part was measured at, the latest time.
        adata
            Control cells of a context that the model does not keep; ``None``: the model's own.

        Returns
        -------
        DataFrame
            One row per condition. ``well``; ``condition``; ``toward``: mean change of log expression in the wanted direction, over the
            genes of the signature by their weight; ``alignment``: cosine of the whole effect and the signature; ``best_part``,
            ``best_part_toward``: what the better part does alone; ``support`` as in `predict`; ``left_out_r``, ``left_out_n``: over that
            many conditions, parts or contexts that were left out of the rule in turn, as this kind of prediction (or a harder one)
            needs it, the correlation of predicted and measured ``toward`` (nan: too few to tell).
        """
        self._check_trained()
        rule = self._measured_rule()
        if most_parts not in (1, 2):
            raise ConfigError(f"most_parts={most_parts}: 1 for single perturbations, 2 for pairs as well")
        if top < 1:
            raise ConfigError(f"top={top}: ask for at least one condition")
        wanted = self._signature(up, down, signature)
        make = self._maker(dose, time)
        places = self._places(covariates, adata)
        measured = {spec for spec in self.vocabulary.conditions if all((spec, level) in self.vocabulary.measured for level in places)}
        specs, effects, alone = self._best_by_rule(rule, wanted, make, measured, places, most_parts, top)
        if not specs:
            raise DataError("nothing is left to propose: everything that this model could combine was measured in these cells")
        support = [self._weakest_support(spec, places) for spec in specs]
        for level, cells in places.items():
            effects = effects + self._beyond_rule(rule, specs, support, level, cells) / len(places)
        table = self._ranked(specs, effects, support, wanted, alone, places)
        return table.sort_values("toward", ascending=False, kind="stable").iloc[:top].reset_index(drop=True).pipe(_in_wells)

    def prepare_ranking(self) -> None:
        """Do now what the first ranking takes longest over: leave measured pairs (or what there is) out in turn."""
        self._left_out_correlation(Signature(np.full(len(self.genes), 1.0 / len(self.genes))), "combination")

    def measured_effect(self, condition: str | pd.DataFrame, covariates: Mapping[str, str] | None = None) -> pd.Series:
        """The effect of a training condition on every gene, as measured: a signature. Mean over the contexts that `covariates` leave.

        A name without dose and time stands for the largest dose and the latest time at which it was measured.
        """
        measured = self._measured_rule().genes.measured
        spec = self._measured_spec(condition, measured)
        levels = [i for i, level in enumerate(measured.levels) if self._matches(level, covariates)]
        units = (measured.spec_of == measured.specs.index(spec)) & np.isin(measured.level_of, levels)
        if not units.any():
            raise DataError(f"{describe(spec, self.setup)!r} was not measured in the cells of {dict(covariates or {})}: choose others")
        return self._by_gene(measured.effect[units].astype(np.float64).mean(0))

    def _measured_spec(self, condition: str | pd.DataFrame, measured: MeasuredEffects) -> ConditionSpec:
        if isinstance(condition, str):
            named = condition_parts(condition, self.setup.delimiter, self.setup.control)
            wanted = [spec for spec in measured.specs if spec.parts == named]
        else:
            asked = requested_specs(condition, "error", self.setup, self.vocabulary)[0][0]
            condition, wanted = describe(asked, self.setup), [spec for spec in measured.specs if spec == asked]
        if not wanted:
            names = dict.fromkeys(condition_label(spec, self.setup) for spec in measured.specs)
            raise DataError(f"{condition!r} was not measured in training beside controls: {near(condition, names)}")
        return max(wanted, key=lambda spec: (spec.doses, spec.time))

    def context_difference(self, start: Mapping[str, str], end: Mapping[str, str], *, adata: AnnData | None = None) -> pd.Series:
        """By how much the control cells of `end` differ from those of `start`, in mean log expression of every gene: a signature."""
        means = []
        for which in (start, end):
            cells, obs, _ = self._controls(adata, "error")
            rows = matching_rows(obs, dict(which))
            means.append(np.asarray(log_normalise(whole(cells.counts)[rows], cells.library[rows]).astype(np.float64).mean(0)).ravel())
        return self._by_gene(means[1] - means[0])

    def _by_gene(self, values: NDArray) -> pd.Series:
        return pd.Series(values, index=pd.Index(self.genes, dtype=str))

    def _measured_rule(self) -> Recentring:
        if self.rule is None:
            raise ConfigError("this model keeps no measured effects (anchor='none'): ranking needs them; fit it with anchor='additive'")
        return self.rule

    def _signature(self, up: Iterable[str], down: Iterable[str], signature: Mapping[str, float] | pd.Series | None) -> Signature:
        lists = gene_weights([up] if isinstance(up, str) else up, [down] if isinstance(down, str) else down)
        if signature is not None and lists:
            raise ConfigError("give either up and down, or signature")
        weights: Mapping[Any, float] = lists if signature is None else dict(signature)
        return signature_of(weights, self.genes)

    def _maker(self, dose: float | None, time: float | None) -> Callable[[tuple[str, ...]], ConditionSpec]:
        """Parts -> the condition that is proposed."""
        for name, key, value in (("dose", self.setup.dose_key, dose), ("time", self.setup.time_key, time)):
            if value is not None and key is None:
                raise ConfigError(f"{name}={value:g}: this model was fitted without {name}s")
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}={value:g}: must be a number above 0")
        largest: dict[str, float] = {}
        for spec in self.vocabulary.conditions:
            for part, amount in zip(spec.parts, spec.doses, strict=True):
                largest[part] = max(amount, largest.get(part, 0.0))
        latest = max((spec.time for spec in self.vocabulary.conditions), default=0.0) if time is None else time

        def make(parts: tuple[str, ...]) -> ConditionSpec:
            return ConditionSpec(parts, tuple(largest[part] if dose is None else dose for part in parts), latest)

        return make

    def _places(self, covariates: Mapping[str, str] | None, adata: AnnData | None) -> dict[Level, Screen]:
        """Control cells of each context that is asked for."""
        cells, obs, _ = self._controls(adata, "error")
        for key in covariates or {}:
            if key not in obs:
                raise ConfigError(f"covariates has {key!r}, which setup_anndata did not name: {near(key, obs.columns)}")
        wanted = matching_rows(obs, dict(covariates or {}))
        return {cells.contexts[c]: cells.rows(wanted[cells.context[wanted] == c]) for c in np.unique(cells.context[wanted])}

    def _matches(self, level: Level, covariates: Mapping[str, str] | None) -> bool:
        given = covariates or {}
        return all(str(given.get(key, value)) == value for key, value in zip(self.setup.match_keys, level, strict=True))

    def _best_by_rule(
        self,
        rule: Recentring,
        wanted: Signature,
        make: Callable[[tuple[str, ...]], ConditionSpec],
        measured: set[ConditionSpec],
        places: Mapping[Level, Screen],
        most_parts: int,
        top: int,
    ) -> tuple[list[ConditionSpec], NDArray, dict[str, float]]:
        """Candidates, their effects by the rule (mean over contexts), and what single perturbations do towards the signature."""
        names = sorted(self.vocabulary.seen)
        means = {level: _mean(cells) for level, cells in places.items()}

        def effect(spec: ConditionSpec) -> NDArray:
            return np.mean([rule.genes.effect(spec, level, mean) for level, mean in means.items()], 0)

        alone = {name: float(wanted.toward(effect(make((name,))))) for name in names}
        specs = unmeasured_singles(names, make, measured)
        if most_parts == 2:
            specs += unmeasured_pairs(alone, make, measured, max(MOST_JUDGED, top))
        effects = np.array([effect(spec) for spec in specs]).reshape(len(specs), len(self.genes))
        best = np.argsort(-wanted.toward(effects), kind="stable")[:top]
        return [specs[i] for i in best], effects[best], alone

    def _weakest_support(self, spec: ConditionSpec, places: Mapping[Level, Screen]) -> str:
        """Over contexts; a label of `SUPPORT`."""
        found = {support_labels(spec, cells.rows(np.arange(1)), self.vocabulary)[0] for cells in places.values()}
        return max(found, key=SUPPORT.index)

    def _beyond_rule(
        self, rule: Recentring, specs: Sequence[ConditionSpec], support: Sequence[str], level: Level, cells: Screen
    ) -> NDArray[np.float64]:
        """What the flow adds to the rule's effect on every gene (P x G), as far as it is trusted; one batch for all conditions."""
        trust = [trusted(spec, self.vocabulary, self.trust)[label].mean for spec, label in zip(specs, support, strict=True)]
        moving = np.flatnonzero(trust).tolist()
        result = np.zeros((len(specs), len(self.genes)))
        if not len(moving):
            return result
        controls = cells.rows(np.resize(np.arange(len(cells.cells)), FLOW_CELLS))
        state = self.space.encode(whole(controls.counts), controls.library)
        repeated = controls.rows(np.tile(np.arange(FLOW_CELLS), len(moving)))
        ids, factual = (self._ids_of(names, repeated) for names in ([specs[i] for i in moving], [ConditionSpec()] * len(moving)))
        device = next(self.module.parameters()).device
        moved = displaced(self.module, state.repeat(len(moving), 1).to(device), repeated, ids, factual, Sampling()).cpu()
        displacement = moved.reshape(len(moving), FLOW_CELLS, -1).double().mean(1).numpy()
        here, exposure = state.double().mean(0).numpy(), exposures(self.space, controls)
        for row, i in enumerate(moving):
            by_rule = rule.states.effect(specs[i], level, here)
            flow = by_rule + trust[i] * (rule.states.anchor(specs[i]) + displacement[row] - by_rule)
            after = [self._decoded_mean(state + torch.from_numpy(shift).float(), exposure, controls) for shift in (by_rule, flow)]
            result[i] = after[1] - after[0]
        return result

    def _ids_of(self, specs: Sequence[ConditionSpec], cells: Screen) -> ConditionIds:
        """Of each condition `FLOW_CELLS` cells."""
        rows = [spec for spec in specs for _ in range(FLOW_CELLS)]
        return self.vocabulary.ids(rows, {key: list(cells.covariates[key]) for key in self.vocabulary.covariates})

    def _decoded_mean(self, state: torch.Tensor, exposure: NDArray, controls: Screen) -> NDArray[np.float64]:
        from scipy import sparse

        expected = sparse.csr_matrix(self.space.decode(state, exposure))
        return np.asarray(log_normalise(expected, controls.library).astype(np.float64).mean(0)).ravel()

    def _ranked(
        self,
        specs: Sequence[ConditionSpec],
        effects: NDArray,
        support: Sequence[str],
        wanted: Signature,
        alone: Mapping[str, float],
        places: Mapping[Level, Screen],
    ) -> pd.DataFrame:
        best = [max(spec.parts, key=lambda name: alone[name]) for spec in specs]
        kinds = [self._kind(spec, label, places) for spec, label in zip(specs, support, strict=True)]
        correlation = {kind: self._left_out_correlation(wanted, kind) for kind in set(kinds)}
        return pd.DataFrame(
            {
                "condition": [describe(spec, self.setup) for spec in specs],
                "toward": wanted.toward(effects),
                "alignment": wanted.alignment(effects),
                "best_part": best,
                "best_part_toward": [alone[name] for name in best],
                "support": list(support),
                "left_out_r": [correlation[kind][0] for kind in kinds],
                "left_out_n": [correlation[kind][1] for kind in kinds],
            }
        )

    def _kind(self, spec: ConditionSpec, support: str, places: Mapping[Level, Screen]) -> str:
        kind = kinds_by_label(spec, self.vocabulary)[support]
        return "new in a new context" if kind == "context" and spec not in self.vocabulary.conditions else kind

    def _left_out_correlation(self, wanted: Signature, kind: str) -> tuple[float, int]:
        """How alike predicted and measured movement towards the signature were, for a kind (or a harder one) left out in turn."""
        genes = _some_genes(wanted.weight)
        weight = wanted.weight[genes]
        for name in (kind, *FALLBACK.get(kind, ())):
            if some := self._left_out(genes, name):
                predicted, real = (np.array([getattr(one, side) @ weight for one in some]) for side in ("predicted", "measured"))
                n = len({one.group for one in some})
                told = n >= FEWEST and predicted.std() > 0 and real.std() > 0
                return (float(np.corrcoef(predicted, real)[0, 1]) if told else float("nan")), n
        return float("nan"), 0

    def _left_out(self, genes: NDArray[np.intp], kind: str) -> list[LeftOut]:
        """Measured effects on some genes, each predicted from the others; kept for the next question."""
        rule = self._measured_rule()
        if self._left_out_known is None or self._left_out_known[0] is not rule or self._left_out_known[1] != genes.tobytes():
            self._left_out_known = rule, genes.tobytes(), {}
        known = self._left_out_known[2]
        if kind not in known:
            known[kind] = list(leave_out(rule.genes.measured.on(genes), only=kind, most=MOST_LEFT_OUT))
        return known[kind]


def _some_genes(weight: NDArray) -> NDArray[np.intp]:
    """All, or those of the largest weights and others evenly."""
    if len(weight) <= MOST_GENES:
        return np.arange(len(weight))
    heavy = np.argsort(-np.abs(weight), kind="stable")[: MOST_GENES // 2]
    others = np.setdiff1d(np.arange(len(weight)), heavy)
    return np.sort(np.concatenate([heavy, others[np.linspace(0, len(others) - 1, MOST_GENES - len(heavy)).astype(int)]]))


def _mean(cells: Screen) -> NDArray[np.float64]:
    return np.asarray(log_normalise(whole(cells.counts), cells.library).astype(np.float64).mean(0)).ravel()


def _in_wells(table: pd.DataFrame) -> pd.DataFrame:
    """A1 to H12, plate by plate."""
    wells = [f"{'ABCDEFGH'[i % PLATE // 12]}{i % 12 + 1}" for i in range(len(table))]
    if len(table) > PLATE:
        wells = [f"{i // PLATE + 1}:{well}" for i, well in enumerate(wells)]
    table.insert(0, "well", wells)
    return table
