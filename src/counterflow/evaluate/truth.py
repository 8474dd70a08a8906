"""What a prediction is scored against: real cells of each held-out condition, the controls it starts from, and the scoring PCA.

A *unit* is one condition in one context (a level of ``match_keys``). Everything here is real data; no model is met.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.matrix import log_normalised
from counterflow.data.schema import Setup, setup_of
from counterflow.data.screen import Screen, describe, gene_positions, read_screen
from counterflow.data.source import BATCH, take_genes
from counterflow.data.split_file import SEPARATOR
from counterflow.errors import DataError
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData
    from sklearn.decomposition import PCA

FEWEST_CELLS = 4  # real cells of a unit: two in each half
MAX_SHARED_CONTROLS = 200  # with one context and no more controls than this, all are sources and none is fitted on
N_COMPONENTS = 50
MOST_FITTED = 20_000  # cells for the scoring PCA
MOST_SOURCES = 1_000  # control cells of a context that predictions start from


@dataclass(frozen=True)
class Unit:
    """One held-out condition in one context."""

    number: int
    spec: ConditionSpec
    condition: str
    context: str
    context_code: int
    request: pd.DataFrame  # one row with the setup's condition columns: what `predict` is asked
    real: NDArray[np.intp]  # positions of the real perturbed cells
    kept: NDArray[np.bool_]  # G; False for the perturbed genes themselves


@dataclass(frozen=True)
class Context:
    """The controls of one level of ``match_keys``, and the axes its cells are compared in."""

    sources: NDArray[np.intp]  # positions of the control cells that predictions start from
    pca: PCA


@dataclass(frozen=True)
class Truth:
    """A declared AnnData as the scorer sees it."""

    screen: Screen
    setup: Setup
    units: tuple[Unit, ...]
    skipped: tuple[str, ...]  # units with too few cells to be halved
    contexts: dict[int, Context]

    def log(self, rows: NDArray) -> NDArray[np.float32]:
        """log1p of counts per 10,000 (dense) of the cells at these positions."""
        return log_normalised(self.screen.counts[rows], self.screen.library[rows]).toarray()

    def mean(self, rows: NDArray) -> NDArray[np.float64]:
        """Mean log expression of the cells at these positions, some at a time: the bits of all at once."""
        total = np.zeros((1, len(self.screen.genes)))
        for start in range(0, len(rows), BATCH):
            block = self.log(rows[start : start + BATCH])
            total = np.add.reduce(np.concatenate([total, block], dtype=np.float64) if start else block, axis=0, dtype=np.float64)[None]
        return total[0] / len(rows)

    def control_mean(self, code: int) -> NDArray[np.float64]:
        """Mean of the controls that predictions of this context start from: the origin of every effect in it."""
        return self.mean(self.contexts[code].sources)

    def condition_means(self, code: int) -> dict[int, NDArray[np.float64]]:
        """Mean of the real cells of every condition measured in a context (whatever its set): what ranks are taken among."""
        screen = self.screen
        here = (screen.context == code) & ~screen.is_control
        rows = {int(c): np.flatnonzero(here & (screen.condition == c)) for c in np.unique(screen.condition[here])}
        return {c: self.mean(of_c) for c, of_c in rows.items() if len(of_c) >= FEWEST_CELLS}

    def reference_mean(self, code: int) -> NDArray[np.float64]:
        """Mean over training conditions of their mean profiles: the generic response, which `pearson_delta_pertref` takes off.

        In a context where nothing was perturbed in training it is the context's control plus the mean effect elsewhere; means
        of other cell types would make every prediction look specific.
        """
        screen = self.screen
        training = (screen.split == "train") & ~screen.is_control
        here = training & (screen.context == code)
        if here.any():
            return np.mean([self.mean(np.flatnonzero(here & (screen.condition == c))) for c in np.unique(screen.condition[here])], 0)
        effects: dict[int, list[NDArray]] = {}
        for other in np.unique(screen.context[training]):
            control = self.mean(np.flatnonzero(screen.is_control & (screen.context == other)))
            there = training & (screen.context == other)
            for c in np.unique(screen.condition[there]):
                effects.setdefault(int(c), []).append(self.mean(np.flatnonzero(there & (screen.condition == c))) - control)
        return self.control_mean(code) + np.mean([np.mean(of_c, 0) for of_c in effects.values()], 0)

    def on_genes(self, genes: list[str], seed: int) -> Truth:
        """The same truth on fewer genes, for models that predict a selection."""
        columns = gene_positions(self.screen.genes, genes)
        screen = replace(self.screen, counts=take_genes(self.screen.counts, columns), genes=tuple(genes))
        fewer = replace(self, screen=screen, units=tuple(replace(unit, kept=unit.kept[columns]) for unit in self.units))
        return replace(fewer, contexts=_contexts(fewer, seed))


def read_truth(adata: AnnData, subset: str, seed: int) -> Truth:
    """Read the held-out cells of `adata` (see `read_units`), and fit the scoring PCA of every context."""
    screen, setup, units, skipped = read_units(adata, subset)
    truth = Truth(screen, setup, units, skipped, {})
    return replace(truth, contexts=_contexts(truth, seed))


def read_units(adata: AnnData, subset: str) -> tuple[Screen, Setup, tuple[Unit, ...], tuple[str, ...]]:
    """What is held out in `adata` (declared, with ``split_key``): its units, and the names of those with too few cells.

    Raises
    ------
    DataError
        If no split is declared, or no perturbed cell is in `subset`.
    """
    setup = setup_of(adata)
    if setup.split_key is None:
        raise DataError("nothing is held out: fill a column with train | val | test (build_split) and declare it as split_key")
    screen = read_screen(adata, setup)
    chosen = (screen.split == subset) & ~screen.is_control
    if not chosen.any():
        raise DataError(f"no perturbed cell of adata.obs[{setup.split_key!r}] is in {subset!r}: there is nothing to score")
    units: list[Unit] = []
    skipped: list[str] = []
    for condition, context in sorted({(int(c), int(k)) for c, k in zip(screen.condition[chosen], screen.context[chosen], strict=True)}):
        rows = np.flatnonzero(chosen & (screen.condition == condition) & (screen.context == context))
        spec, name = screen.conditions[condition], SEPARATOR.join(screen.contexts[context])
        label = describe(spec, setup)
        if len(rows) < FEWEST_CELLS:
            skipped.append(f"{label} {name}".strip())
            continue
        keys = [key for key in (setup.perturbation_key, setup.dose_key, setup.time_key) if key is not None]
        request = adata.obs[keys].iloc[rows[:1]].reset_index(drop=True)
        kept = ~np.isin(np.array(screen.genes), spec.parts)
        units.append(Unit(len(units), spec, label, name, context, request, rows, kept))
    if not units:
        raise DataError(f"every held-out condition has fewer than {FEWEST_CELLS} cells: there is nothing to score")
    return screen, setup, tuple(units), tuple(skipped)


def _contexts(truth: Truth, seed: int) -> dict[int, Context]:
    """Sources and scoring PCA of every context that is tested. No PCA ever saw the sources of its context.

    With more genes than cells, principal components absorb the noise of the cells they were fitted on, and every method that
    reuses those cells would look too bad.
    """
    screen = truth.screen
    training = np.flatnonzero((screen.split == "train") & ~screen.is_control)
    result = {}
    for code in sorted({unit.context_code for unit in truth.units}):
        rng = np.random.default_rng([seed, code])
        sources = np.flatnonzero(screen.is_control & (screen.context == code))
        others = np.flatnonzero(screen.is_control & (screen.context != code))
        if not len(others) and len(sources) > MAX_SHARED_CONTROLS:
            shuffled = rng.permutation(sources)
            sources, others = np.sort(shuffled[: len(sources) // 2]), shuffled[len(sources) // 2 :]
        if len(sources) > MOST_SOURCES:  # those left over are not fitted on either: their context stays unknown to the PCA
            sources = np.sort(rng.permutation(sources)[:MOST_SOURCES])
        fitted = np.concatenate([training, others])
        result[code] = Context(sources, _pca(truth, np.sort(rng.permutation(fitted)[:MOST_FITTED])))
    return result


def _pca(truth: Truth, rows: NDArray) -> PCA:
    from sklearn.decomposition import PCA

    cells = truth.log(rows)
    n_components = max(1, min(N_COMPONENTS, len(cells) - 1, cells.shape[1] - 1))
    return PCA(n_components, svd_solver="randomized", random_state=0).fit(cells)


def project(pca: PCA, cells: NDArray, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cells in the scoring PCA; genes that are not kept count as average, so they tell nothing."""
    return ((cells - pca.mean_)[:, kept] @ pca.components_.T[kept]).astype(np.float64)
