"""Do the intervals hold what they promise? Predicted effects of held-out conditions against the measured ones, gene by gene."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.stored import read_cells_at
from counterflow.evaluate.truth import Truth, Unit

if TYPE_CHECKING:
    from anndata import AnnData

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHOWN_LEVEL = 0.9
N_TOP = 20  # genes of the largest predicted effects: most genes do nothing, and are easy to cover
REPEATS = 0.4  # correlation of two halves of the real cells, from which on an effect is there to be covered


class Effect(Protocol):
    """A predicted effect with its interval; see `counterflow.effect_table.PredictedEffect`."""

    support: str
    effect: NDArray
    certainty: object | None

    @property
    def rival(self) -> NDArray | None:
        """What the best simple rule says."""
        ...

    def half_width(self, coverage: float) -> NDArray:
        """Of the interval."""
        ...


@runtime_checkable
class SaysHowSure(Protocol):
    """A predictor that gives intervals: `CounterFlow`."""

    @property
    def genes(self) -> tuple[str, ...]:
        """Of the predictor."""
        ...

    def effects(self, adata: AnnData, conditions: pd.DataFrame, cells: float, seed: int) -> Iterable[Effect]:
        """One effect for each context of the control cells in `adata`, as it would be measured on so many `cells`."""
        ...


def coverage(predictor: SaysHowSure, adata: AnnData, truth: Truth, seed: int) -> pd.DataFrame:
    """One row per held-out unit and nominal level; empty for a predictor without intervals.

    Columns: ``condition``, ``context``, ``support``, ``split_half`` (how well the effect repeats), ``level``, ``covered`` (share of genes
    whose measured effect the interval holds), ``top_covered`` (of the genes of the largest predicted effects), ``width`` (mean, to
    either side), ``excludes_zero``, ``beyond_baseline`` (shares of genes).
    """
    rows = []
    for unit in truth.units:
        for one in _effects_of(predictor, adata, truth, unit, seed):
            rows += _rows(predictor, truth, unit, one, seed)
    return pd.DataFrame(rows)


def _effects_of(predictor: SaysHowSure, adata: AnnData, truth: Truth, unit: Unit, seed: int) -> Iterable[Effect]:
    controls = read_cells_at(adata, truth.setup, truth.contexts[unit.context_code].sources)
    return [one for one in predictor.effects(controls, unit.request, float(len(unit.real)), seed) if one.certainty is not None]


def _rows(predictor: SaysHowSure, truth: Truth, unit: Unit, one: Effect, seed: int) -> list[dict[str, object]]:
    genes = truth.screen.genes
    place = {gene: i for i, gene in enumerate(predictor.genes)}
    shared = np.array([gene in place for gene in genes]) & unit.kept
    at = np.array([place[gene] for gene, chosen in zip(genes, shared, strict=True) if chosen])
    measured = (truth.mean(unit.real) - truth.control_mean(unit.context_code))[shared]
    predicted, rival = one.effect[at], None if one.rival is None else one.rival[at]
    top = np.argsort(-np.abs(predicted), kind="stable")[:N_TOP]
    repeated = _repeats(truth, unit, seed)
    result = []
    for level in LEVELS:
        half = one.half_width(level)[at]
        inside = np.abs(measured - predicted) <= half
        result.append(
            {
                "condition": unit.condition, "context": unit.context, "support": one.support, "split_half": repeated, "level": level,
                "covered": inside.mean(), "top_covered": inside[top].mean(), "width": half.mean(),
                "excludes_zero": (np.abs(predicted) > half).mean(),
                "beyond_baseline": np.nan if rival is None else (np.abs(predicted - rival) > half).mean(),
            }
        )  # fmt: skip
    return result


def _repeats(truth: Truth, unit: Unit, seed: int) -> float:
    """Correlation of the effect measured on one half of the real cells and of the controls with that on the other halves."""
    rng = np.random.default_rng([seed, unit.number, 2])
    halves = []
    for rows in (unit.real, truth.contexts[unit.context_code].sources):
        shuffled = rng.permutation(rows)
        halves.append([truth.mean(part)[unit.kept] for part in np.array_split(shuffled, 2)])
    first, second = (real - control for real, control in zip(*halves, strict=True))
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else float("nan")


def by_support(rows: pd.DataFrame, level: float = SHOWN_LEVEL) -> pd.DataFrame:
    """Means over conditions at one level, for each method and support label, and for effects that repeat."""
    at = rows[np.isclose(rows["level"], level)]
    columns = ["covered", "top_covered", "width", "excludes_zero", "beyond_baseline"]
    groups = [("all", at), (f"effects that repeat (r > {REPEATS:g})", at[at["split_half"] > REPEATS])]
    groups += [(str(label), some) for label, some in at.groupby("support", sort=False)] if at["support"].nunique() > 1 else []
    blocks = []
    for name, some in groups:
        if len(some):
            means = some.groupby("method", sort=False)[columns].mean()
            means.insert(0, "conditions", some.groupby("method", sort=False).size())
            blocks.append(means.reset_index().assign(which=name))
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()
