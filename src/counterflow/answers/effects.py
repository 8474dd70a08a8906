"""What a fitted model is asked: by how much genes change, and how sure that is. `CounterFlow` inherits all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from counterflow.answers.densities import DensityAnswers
from counterflow.effect_table import PredictedEffect, check_interval, effect_of, effect_table
from counterflow.effects.on_target import OnTarget, on_target
from counterflow.errors import ConfigError
from counterflow.requests import check_n_cells, kinds_by_label, matching_rows, requested_specs, support_labels
from counterflow.sampling import Sampling
from counterflow.spaces.counts import cell_seeds, distinct_names

if TYPE_CHECKING:
    from anndata import AnnData


class EffectAnswers(DensityAnswers):
    """Questions about effects on genes."""

    def predict_effect(
        self,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        interval: float | None = 0.9,
        *,
        adata: AnnData | None = None,
        cells: float | None = None,
        n_cells: int = 512,
        n_steps: int | None = None,
        seed: int = 0,
        on_unknown: Literal["error", "mean"] = "error",
        missing_genes: Literal["error", "zero"] = "error",
    ) -> pd.DataFrame:
        """By how much the mean log expression of every gene changes, and how sure that is.

        Parameters
        ----------
        conditions, adata, n_steps, on_unknown, missing_genes
            As in `predict`.
        interval
            Share of measured effects that ``lo`` to ``hi`` should hold: learnt on training conditions that were left out and predicted, for
            each kind of generalisation (`counterflow.effects.intervals`). ``None``: no interval.
        cells
            The experiment that the interval is for: that many cells of the condition. ``None``: as many as conditions of the training
            screen have; ``float("inf")``: what any number of cells would show.
        n_cells
            Control cells of each context that are moved to find the effect; repeated, with new draws of counts, where there are fewer.
        seed
            Of the choice of controls and of counting noise.

        Returns
        -------
        DataFrame
            One row per condition, context (the columns of `match_keys`) and gene. ``effect``, ``lo``, ``hi``: difference in mean log1p of
            counts per 10,000 to the controls; ``support`` as in `predict`; ``baseline``, ``baseline_effect``: the simple rule that was
            best on left-out effects of this kind, and what it says; ``beyond_baseline``: whether the interval leaves that out, so that the
            model says something a simple rule does not; ``calibrated_on``: left-out conditions or contexts behind the interval (0: none
            could be left out, and ``lo`` and ``hi`` are nan); ``target``: this gene is perturbed in the condition.
        """
        self._check_trained()
        check_n_cells(n_cells)
        check_interval(interval, cells)
        if interval is not None and self.intervals is None:
            why = "anchor='none'" if self.rule is None else "it was saved by an older version: fit it again"
            raise ConfigError(
                f"this model learnt no intervals ({why}); without them: predict_effect(..., interval=None), or --interval null"
            )
        some = self.effects(
            adata, conditions, cells, seed, n_cells=n_cells, n_steps=n_steps, on_unknown=on_unknown, missing_genes=missing_genes
        )
        moved = {one.perturbation: one.effect for one in self.on_target() if one.direction}
        return effect_table(some, self.genes, self.setup, interval, moved)

    def effects(
        self,
        adata: AnnData | None,
        conditions: str | Sequence[str] | pd.DataFrame | None,
        cells: float | None = None,
        seed: int = 0,
        *,
        n_cells: int = 512,
        n_steps: int | None = None,
        on_unknown: str = "error",
        missing_genes: str = "error",
    ) -> Iterator[PredictedEffect]:
        """What `predict_effect` tabulates: one effect for each condition and context, with its interval at any level."""
        self._check_trained()
        specs, table = requested_specs(conditions, on_unknown, self.setup, self.vocabulary)
        controls, obs, _ = self._controls(adata, missing_genes)
        origins = self._origins()
        how = Sampling(n_steps=n_steps, seed=seed)
        decoder = how.decode_by(self.space.decoder, self.rule is not None)
        genes = None if self.rule is None else self.rule.genes
        for i, spec in enumerate(specs):
            wanted = matching_rows(obs, dict(table.iloc[i]))
            for context in np.unique(controls.context[wanted]):
                rows = np.sort(np.random.default_rng([seed, 1]).permutation(wanted[controls.context[wanted] == context])[:n_cells])
                some = controls.rows(np.tile(rows, -(-n_cells // len(rows))))  # counts are drawn: a mean of few draws is noisy
                some = replace(some, cells=distinct_names(some.cells))
                support = support_labels(spec, some, self.vocabulary)
                correction = self._correction(spec, some, support, origins, how, calibrated=decoder == "calibrated")
                counts, _ = self._counterfactual(spec, some, correction, how, cell_seeds(some.cells))
                label = max(set(support), key=support.count)
                kind = kinds_by_label(spec, self.vocabulary)[label]
                if kind == "context" and spec not in self.vocabulary.conditions:
                    kind = "new in a new context"  # harder than all that was left out: no interval
                yield effect_of(spec, some, counts, label, kind, genes, self.intervals, cells)

    def on_target(self) -> tuple[OnTarget, ...]:
        """Does each perturbed gene itself change? As measured in training, for perturbations named after a gene of the model."""
        self._check_trained()
        return () if self.rule is None else on_target(self.rule.genes.measured, self.genes)
