"""What all simple predictors share: they are trained on a declared AnnData and predict cells, like a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.schema import setup_of
from counterflow.data.screen import Screen, read_cells, read_screen, read_specs, requested, write_condition
from counterflow.data.source import whole
from counterflow.effects.additive import AdditiveRule, MeanEffects, mean_effects
from counterflow.evaluate.baselines.cells import log_expression, move_cells, transport_cells
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData

Level = tuple[str, ...]  # of match_keys


@dataclass(frozen=True)
class Situation:
    """What a split asks for; it decides which baselines apply."""

    combinations: bool  # combinations are asked for
    trained_combinations: bool  # and some were measured
    held_out_context: bool  # a condition is asked for where nothing was perturbed in training, and it was measured elsewhere
    several_contexts: bool  # it was measured in at least two others
    unseen_parts: bool  # a perturbation that was never measured, with gene expression of its own to know it by
    levels: bool  # a dose or time between measured ones, or beyond

    @classmethod
    def of(cls, screen: Screen, subset: str = "test") -> Situation:
        """Read it off the training cells and the conditions of `subset`."""
        perturbed = ~screen.is_control
        training, asked = perturbed & (screen.split == "train"), perturbed & (screen.split == subset)
        trained = {(screen.conditions[c], int(k)) for c, k in zip(screen.condition[training], screen.context[training], strict=True)}
        units = {(screen.conditions[c], int(k)) for c, k in zip(screen.condition[asked], screen.context[asked], strict=True)}
        met = {context for _, context in trained}
        elsewhere = [sum(spec == s for s, _ in trained) for spec, context in units if context not in met]
        seen = {part for spec, _ in trained for part in spec.parts}
        known = {part for part in seen if part in screen.genes}
        unseen = {part for spec, _ in units for part in spec.parts} - seen
        measured = {spec.parts for spec, _ in trained}
        specs = {spec for spec, _ in trained}
        return cls(
            combinations=any(len(spec.parts) > 1 for spec, _ in units),
            trained_combinations=any(len(spec.parts) > 1 for spec, _ in trained),
            held_out_context=any(n >= 1 for n in elsewhere),
            several_contexts=any(n >= 2 for n in elsewhere),
            unseen_parts=len(known) >= 3 and any(part in screen.genes for part in unseen),
            levels=any(spec not in specs and spec.parts in measured for spec, _ in units),
        )


class Rule:
    """A predictor of mean effects. ``decoder``: how cells are made from a mean, ``log`` (moved) or ``counts`` (count transport).

    A subclass says what the effect is (`effect`), or what the cells are (`cells_of`), and when it has something to say (`applies`).
    """

    name: ClassVar[str]

    def __init__(self, decoder: Literal["log", "counts"] = "log") -> None:
        self.decoder = decoder

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """Whether the rule has anything to say about what is asked for."""
        del situation
        return True

    def train(self, adata: AnnData) -> None:
        """Measure what the rule needs on the training cells of a declared AnnData."""
        self.setup = setup_of(adata)
        screen = read_screen(adata, self.setup)
        self.genes = screen.genes
        self.fit(screen.rows(screen.split == "train"))

    def fit(self, cells: Screen) -> None:
        """Learn from training cells."""

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """Change of the mean log expression (G) of controls with mean `control` in `context`; None for no change."""
        raise TypeError(f"{type(self).__name__} predicts cells, not effects: it overrides cells_of")

    def cells_of(self, spec: ConditionSpec, context: Level, controls: Screen) -> NDArray[np.float32]:
        """Predicted log expression (n x G) of these control cells, all of one context."""
        expression = log_expression(whole(controls.counts), controls.library)
        effect = self.effect(spec, context, expression.mean(0, dtype=np.float64)) if spec.parts else None
        if self.decoder == "counts":
            return transport_cells(whole(controls.counts), controls.library, effect, controls.cells)
        return move_cells(expression, effect)

    def predict(self, adata: AnnData, conditions: str | list[str] | pd.DataFrame) -> AnnData:
        """Each control cell of `adata` under each condition; ``X`` is log1p of counts per 10,000."""
        import anndata

        cells, positions = read_cells(adata, self.setup, self.genes)
        table = requested(conditions, self.setup)
        blocks = []
        for spec in read_specs(table, self.setup):
            expression = np.empty(cells.counts.shape, dtype=np.float32)
            for code in np.unique(cells.context):
                rows = np.flatnonzero(cells.context == code)
                expression[rows] = self.cells_of(spec, cells.contexts[code], cells.rows(rows))
            obs = adata.obs.iloc[positions].copy()
            write_condition(obs, spec, self.setup)
            blocks.append(anndata.AnnData(sparse.csr_matrix(expression), obs=obs, var=adata.var.loc[list(self.genes)]))
        return anndata.concat(blocks, index_unique="-") if len(blocks) > 1 else blocks[0]


class MeasuredRule(Rule):
    """A rule that is read off the mean effects of the training conditions, measured in log expression."""

    def fit(self, cells: Screen) -> None:
        """Measure them."""
        self.measured: MeanEffects = mean_effects(
            lambda rows: log_expression(cells.counts[rows], cells.library[rows]), cells.conditions, cells.condition, cells.context
        )
        self.additive = AdditiveRule.fit(self.measured)
        self.generic = self.measured.effect.mean(0)


def known_effects(measured: MeanEffects) -> dict[ConditionSpec, NDArray]:
    """Training condition -> effect."""
    return dict(zip(measured.specs, measured.effect, strict=True))
