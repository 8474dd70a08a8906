"""Simple predictors with the models' own interface: `train` on a declared AnnData, `predict` -> AnnData of cells.

Every table shows them. In print they have beaten deep models on means, and they cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.data.effects import AdditiveRule, mean_effects
from counterflow.data.matrix import TARGET_SUM
from counterflow.data.schema import setup_of
from counterflow.data.screen import Screen, read_cells, read_screen, read_specs, requested
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


def log_expression(counts: sparse.csr_matrix, library: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000 (dense, n x G): the scale on which everything is scored."""
    scale = TARGET_SUM / np.maximum(library, 1.0)
    return np.log1p(counts.multiply(scale[:, None]).toarray()).astype(np.float32)


class Control:
    """Nothing happens: the control cells themselves. The floor of every table."""

    name = "control"

    def train(self, adata: AnnData) -> None:
        """Remember the declaration and, for the rules that need it, measure effects on training cells (log1p means)."""
        self.setup = setup_of(adata)
        screen = read_screen(adata, self.setup)
        self.genes = screen.genes
        self.fit(screen.rows(screen.split == "train"))

    def fit(self, cells: Screen) -> None:
        """Learn from training cells."""

    def effect(self, spec: ConditionSpec) -> np.ndarray | None:
        """Change of the mean log expression (G), or None for no change."""
        del spec

    def predict(self, adata: AnnData, conditions: str | list[str] | pd.DataFrame) -> AnnData:
        """Each control cell of `adata` under each condition; ``X`` is log1p of counts per 10,000."""
        import anndata

        cells, positions = read_cells(adata, self.setup, self.genes)
        expression = log_expression(cells.counts, cells.library)
        table = requested(conditions, self.setup)
        blocks = []
        for row, spec in enumerate(read_specs(table, self.setup)):
            obs = adata.obs.iloc[positions].copy()
            obs[self.setup.perturbation_key] = str(table[self.setup.perturbation_key].iloc[row])
            blocks.append(
                anndata.AnnData(sparse.csr_matrix(move_cells(expression, self.effect(spec))), obs=obs, var=adata.var.loc[list(self.genes)])
            )
        return anndata.concat(blocks, index_unique="-") if len(blocks) > 1 else blocks[0]


class _Rule(Control):
    def fit(self, cells: Screen) -> None:
        """Measure the effect of every training condition in log expression."""
        measured = mean_effects(
            lambda rows: log_expression(cells.counts[rows], cells.library[rows]), cells.conditions, cells.condition, cells.context
        )
        self.rule = AdditiveRule.fit(measured)
        self.mean = measured.effect.mean(0)


class PerturbationMean(_Rule):
    """The mean effect of the training conditions, whatever is asked for: one generic response."""

    name = "mean"

    def effect(self, spec: ConditionSpec) -> np.ndarray | None:
        """The same for every condition; none for the control."""
        return self.mean if spec.parts else None


class Additive(_Rule):
    """Sum of the parts' effects, each averaged over contexts and interpolated in dose and time (`AdditiveRule`)."""

    name = "additive"

    def effect(self, spec: ConditionSpec) -> np.ndarray | None:
        """The additive rule."""
        return self.rule(spec) if spec.parts else None


BASELINES = {rule.name: rule for rule in (Control, PerturbationMean, Additive)}


def move_cells(expression: np.ndarray, effect: np.ndarray | None) -> np.ndarray:
    """Cells (n x G, log1p) with the mean moved by `effect`: genes going up are shifted, genes going down are scaled (zeros stay zeros)."""
    if effect is None:
        return expression
    mean = expression.mean(0)
    wanted = np.maximum(mean + effect, 0)
    factor = np.where(mean > 0, wanted / np.maximum(mean, 1e-12), 1.0)
    return np.where(effect >= 0, expression + effect, expression * factor).astype(np.float32)
