"""A fitted model behind a page: what is asked of it, with everything that was answered before kept at hand."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.screen import Screen, describe, read_cells, read_screen
from counterflow.data.source import whole
from counterflow.errors import ConfigError, CounterflowError, CounterflowWarning
from counterflow.explore.nearest import Neighbour, nearest_measured
from counterflow.explore.questions import Choices, EffectQuestion, RankQuestion
from counterflow.requests import matching_rows
from counterflow.spaces.base import log_normalise
from counterflow.spaces.components import principal_components
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

    from counterflow.model import CounterFlow

KEPT = 32  # answers
SHOWN = 300  # cells of each kind on the embedding
MOST_WARMED = 16  # contexts
MOST_READ = 5_000  # measured cells of each kind that an effect is taken from
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Places:
    """Cells on two axes."""

    control: NDArray[np.float64]  # n x 2
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]  # no rows: none was measured, or no file was given


@dataclass(frozen=True)
class EffectAnswer:
    """What would happen to the cells."""

    condition: str
    support: str
    genes: pd.DataFrame  # of `predict_effect`
    cells: AnnData  # predicted
    places: Places
    nearest: list[Neighbour]
    measured_r: float  # correlation of predicted and measured effect, where a file has cells of the condition; else nan
    remarks: tuple[str, ...]  # what the model said besides


@dataclass(frozen=True)
class RankAnswer:
    """What to do to the cells."""

    table: pd.DataFrame  # of `rank_perturbations`
    remarks: tuple[str, ...]


class Explorer:
    """Answers questions about one model, one at a time.

    Parameters
    ----------
    model
        A fitted one.
    adata
        Measured cells to show beside the predicted ones; its controls are those to start from where the model keeps none.
    """

    def __init__(self, model: CounterFlow, adata: AnnData | None = None) -> None:
        self.model = model
        self.screen = None if adata is None else read_screen(adata, replace(model.setup, split_key=None), model.genes)
        self._given = adata if adata is not None and not len(model.reference.library) else None
        self.controls, self.obs = self._controls()
        self.choices = Choices.of(model, self.obs)
        self._known: dict[Hashable, Any] = {}
        self._alone = threading.Lock()
        self._ranking = threading.Lock()  # held longer, at first: effects need not wait for it

    def effect(self, question: EffectQuestion) -> EffectAnswer:
        """The predicted cells and effects of a condition in one context."""
        return self._remembered(question, lambda: self._effect(question))

    def rank(self, question: RankQuestion) -> RankAnswer:
        """The unmeasured conditions that go furthest towards a signature."""
        with self._ranking:
            return self._remembered(question, lambda: self._rank(question))

    def warm_up(self) -> None:
        """Ask something in every context, so that the answers somebody waits for take less; then make ready for rankings."""
        spec = min(spec for spec in self.model.vocabulary.conditions if spec.parts)
        dose, time = (spec.doses[0] if self.choices.doses else None), (spec.time if self.choices.times else None)
        matched = list(self.choices.matched)
        for row in self.obs[matched].astype(str).drop_duplicates().to_numpy()[:MOST_WARMED]:
            self.effect(EffectQuestion(spec.parts, dose, time, tuple(zip(matched, row, strict=True)), 0.9, 1))
        with suppress(CounterflowError), self._ranking:  # a model that cannot rank says so to who asks
            self.model.prepare_ranking()

    def h5ad(self, question: EffectQuestion) -> bytes:
        """The predicted cells as a file."""
        cells = self.effect(question).cells
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cells.h5ad"
            cells.write_h5ad(file)
            return file.read_bytes()

    def _controls(self) -> tuple[Screen, pd.DataFrame]:
        if self._given is None:
            if not len(self.model.reference.library):
                raise ConfigError("this model keeps no control cells to start from: give a file that has some with --data")
            screen, obs, _ = self.model.reference.cells(self.model.setup, self.model.genes)
            return screen, obs
        screen, positions = read_cells(self._given, self.model.setup, self.model.genes)
        return screen, self._given.obs.iloc[positions]

    def _remembered(self, question: Hashable, find: Callable[[], Answer]) -> Answer:
        with self._alone:  # a network has one state, and Python's list of warnings too
            if question not in self._known:
                self._known[question] = find()
                if len(self._known) > KEPT:
                    del self._known[next(iter(self._known))]
            return self._known[question]

    def _effect(self, question: EffectQuestion) -> EffectAnswer:
        model, setup = self.model, self.model.setup
        table = pd.DataFrame({setup.perturbation_key: [setup.delimiter.join(question.parts)]})
        if setup.dose_key is not None:
            table[setup.dose_key] = [setup.delimiter.join([f"{question.dose:g}"] * len(question.parts))]
        if setup.time_key is not None:
            table[setup.time_key] = question.time
        for key, level in question.levels:
            table[key] = level
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CounterflowWarning)
            interval = None if model.intervals is None else question.interval
            genes = model.predict_effect(table, interval, adata=self._given)
            cells = model.predict(self._given, table, n_cells=question.n_cells)
        spec = ConditionSpec(question.parts, (question.dose or 1.0,) * len(question.parts), question.time or 0.0)
        effect = genes.groupby("gene", sort=False, observed=True)["effect"].mean().reindex(list(model.genes)).to_numpy()
        rows = matching_rows(self.obs, dict(question.levels))
        places, real = self._places(spec, question, rows, cells.X)
        place = self.controls.contexts[self.controls.context[rows[0]]]
        nearest = [] if model.rule is None else nearest_measured(effect, model.rule.genes.measured, place)
        agree = float("nan") if real is None or real.std() == 0 else float(np.corrcoef(effect, real)[0, 1])
        labels = genes["support"].astype(str)
        return EffectAnswer(describe(spec, setup), labels.mode()[0], genes, cells, places, nearest, agree, _said(caught))

    def _places(
        self, spec: ConditionSpec, question: EffectQuestion, rows: NDArray[np.intp], predicted: sparse.csr_matrix
    ) -> tuple[Places, NDArray[np.float64] | None]:
        """Cells on the principal components of all that are shown, and the measured effect where there is one."""
        from scipy import sparse

        draw = np.random.default_rng(0)

        def some(n: int, most: int = SHOWN) -> NDArray[np.intp]:
            return np.sort(draw.permutation(n)[:most])

        control = _log(self.controls, rows)
        shown = [control[some(control.shape[0])], predicted[some(predicted.shape[0])]]
        effect = None
        real = self._measured(spec, dict(question.levels))
        if real is not None:
            assert self.screen is not None
            treated, untreated = (_log(self.screen, chosen[some(len(chosen), MOST_READ)]) for chosen in real)
            effect = np.asarray(treated.mean(0) - untreated.mean(0)).ravel()
            shown.append(treated[some(treated.shape[0])])
        joined = sparse.vstack(shown).tocsr()
        mean, components = principal_components(joined, min(2, *joined.shape), seed=0)
        at = np.asarray(joined @ components.T - mean @ components.T)
        at = at if at.shape[1] == 2 else np.column_stack([at, np.zeros(len(at))])
        parts = np.split(at, np.cumsum([one.shape[0] for one in shown])[:-1])
        return Places(parts[0], parts[1], parts[2] if len(parts) > 2 else np.zeros((0, 2))), effect

    def _measured(self, spec: ConditionSpec, levels: dict[str, str]) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
        """Cells of the file under the condition, and its controls, both of the chosen context; None without any of either."""
        screen = self.screen
        if screen is None or spec not in screen.conditions:
            return None
        here = np.ones(len(screen.condition), dtype=bool)
        for key, level in levels.items():
            if key in screen.covariates:
                here &= (screen.covariates[key].astype(str) == level).to_numpy()
            else:
                place = self.model.setup.match_keys.index(key)
                here &= np.array([names[place] == level for names in screen.contexts])[screen.context]
        found = [np.flatnonzero(here & (screen.condition == code)) for code in (screen.conditions.index(spec), 0)]
        return (found[0], found[1]) if len(found[0]) and len(found[1]) else None

    def _rank(self, question: RankQuestion) -> RankAnswer:
        model = self.model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CounterflowWarning)
            signature = None
            if question.like:
                signature = model.measured_effect(question.like)
            if question.start:
                signature = model.context_difference(dict(question.start), dict(question.end), adata=self._given)
            table = model.rank_perturbations(
                up=question.up, down=question.down, signature=signature, covariates=dict(question.levels), most_parts=question.most_parts,
                dose=question.dose, time=question.time, adata=self._given,
            )  # fmt: skip
        return RankAnswer(table, _said(caught))


def _log(screen: Screen, rows: NDArray[np.intp]) -> sparse.csr_matrix:
    some = screen.rows(rows)
    return log_normalise(whole(some.counts), some.library)


def _said(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, CounterflowWarning)))
