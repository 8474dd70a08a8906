"""`CounterFlow`: the face users see. Names and argument order are scvi-tools' wherever it has one."""

from __future__ import annotations

import os
import time as time_module
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor, nn

from counterflow import spaces
from counterflow.assembly import assemble, resolve
from counterflow.backbones import reads_order
from counterflow.compiling import check_compiler, compiled
from counterflow.data.dropping import kept_cells
from counterflow.data.genes import chosen_genes, select_genes
from counterflow.data.ledger import CellKeys, Ledger
from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.screen import Screen, read_cells, read_screen
from counterflow.data.source import in_memory
from counterflow.data.stored import warn_of_place
from counterflow.effect_table import PredictedEffect, check_interval, effect_of, effect_table
from counterflow.effects.intervals import Intervals
from counterflow.effects.on_target import OnTarget, on_target
from counterflow.errors import ConfigError, near
from counterflow.evaluate.audit import audit_model
from counterflow.fitting import encoded, feature_order, fit_features, fit_gene_rule, fit_intervals, fit_space, states_of, vocabulary_of
from counterflow.flow.path import Prediction
from counterflow.footprint import Footprint, check_memory, footprint
from counterflow.memory import MOST_KEPT
from counterflow.module import FlowModule, Source
from counterflow.prediction import (
    Blocks,
    Correction,
    Sampling,
    blocks_of,
    counterfactual,
    describe_rows,
    displaced,
    made_by,
    new_cells,
    occurrences,
    stack,
    to_anndata,
)
from counterflow.recentring import Origins, Recentring, Trust
from counterflow.recipe import Recipe
from counterflow.reference import Reference
from counterflow.requests import (
    check_library,
    check_n_cells,
    gene_report,
    kinds_by_label,
    matching_rows,
    requested_specs,
    support_labels,
    trusted,
)
from counterflow.resuming import planned_steps
from counterflow.spaces.base import StateSpace
from counterflow.spaces.counts import cell_seeds, distinct_names
from counterflow.types import ConditionIds, ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


DEFAULT_STEPS = 200


class CounterFlow:
    """Counterfactual cells of a perturbation screen, by a conditional rectified flow.

    Parameters
    ----------
    adata
        An AnnData declared with `setup_anndata`.
    backbone
        ``mlp``, ``dit``, ``set``, ``ssm``; or ``"package.module:Name"``, a class, or a ready `nn.Module`.
    space
        ``pca``, ``latent`` (an scVI autoencoder), or ``raw``; or a trained `scvi.model.SCVI` (`counterflow.spaces.latent.load_scvi`).
    source, coupling
        What flows, and how it is paired. Default: ``control`` with ``ot`` in pca and latent, ``noise`` with ``independent`` in raw.
    prediction
        The network's output: velocity ``v`` or data end ``x``. Default: ``x`` in raw with noise, else ``v``.
    conditioning
        How the network listens: ``adaln``, ``cross`` or (token backbones) ``in_context``, ``adaln_plain``, ``cross_layerscale``.
    perturbation_features
        ``coexpression``, ``learned``, or a DataFrame indexed by perturbation name; its ``attrs["fitted_on"]``, the names of the cells
        it was computed on (``[]`` for none), lets the leak audit know.
    anchor
        ``additive``: means come from the measured rule, and the flow learns what the sum of the parts misses (default with a control
        source; fits the flow two more times on less data to learn how far it is trusted). ``none``: the flow learns the whole effect
        (default with noise).
    n_top_genes
        Model this many highly variable genes (and the perturbed ones); ``None`` models all genes of the file.
    keep_controls
        Control cells per context that are stored inside the model, for `generate` and to set means on; 0 stores none.
    seed
        Seed of everything random in the fit.

    Examples
    --------
    >>> cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")  # doctest: +SKIP
    >>> model = cf.CounterFlow(adata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> cells = model.predict(conditions="KLF1+MAP2K6")  # doctest: +SKIP

    Notes
    -----
    A screen identifies what happens to *populations*. Which perturbed cell a given control cell would have become is the
    assumption of the coupling, not a measurement.
    """

    def __init__(
        self,
        adata: AnnData | None,
        *,
        backbone: str | type | nn.Module = "mlp",
        space: str | Any = "pca",
        source: Source | None = None,
        coupling: str | None = None,
        prediction: Prediction | None = None,
        conditioning: Literal["adaln", "cross", "in_context", "adaln_plain", "cross_layerscale"] = "adaln",
        perturbation_features: str | pd.DataFrame = "coexpression",
        anchor: Literal["additive", "none"] | None = None,
        time: Literal["uniform", "logit_normal", "mode"] | None = None,
        condition_dropout: float = 0.1,
        n_top_genes: int | None = None,
        keep_controls: int = 256,
        seed: int = 0,
        backbone_kwargs: dict[str, Any] | None = None,
        space_kwargs: dict[str, Any] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "adata", "perturbation_features")}
        self.config = resolve(options | {"space": space if isinstance(space, str) else "latent"})
        self.history: list[dict[str, float]] = []
        self.is_trained = False
        self.n_steps_trained = 0
        self.rule: Recentring | None = None
        self.trust: dict[str, Trust] = {}
        self.intervals: Intervals | None = None
        self.ledger: Ledger | None = Ledger()
        self.adata = adata
        if adata is not None:
            self._read(adata, perturbation_features, space)

    def _read(self, adata: AnnData, perturbation_features: str | pd.DataFrame, space: Any) -> None:
        self.setup = setup_of(adata)
        n_given, adata = adata.n_obs, kept_cells(adata)
        self.adata = adata
        self.ledger = ledger = Ledger()
        warn_of_place(adata, self.setup)
        screen = read_screen(adata, self.setup, chosen_genes(adata, ledger))
        train = screen.rows(screen.split == "train")
        self.genes = select_genes(train, self.config["n_top_genes"], ledger, self.config["seed"])
        if self.genes != screen.genes:
            screen = read_screen(adata, self.setup, self.genes)
            train = screen.rows(screen.split == "train")
        self._screen, self._train_cells = screen, train
        table = fit_features(perturbation_features, train, self.config["seed"], ledger)
        self.vocabulary = vocabulary_of(train, self.setup, tuple(table.index))
        self.features = table.reindex(self.vocabulary.entities).to_numpy(dtype=np.float32).reshape(len(self.vocabulary.entities), -1)
        kwargs = self.config["space_kwargs"]
        if self.config["space"] == "pca":
            kwargs.setdefault("n_components", max(1, min(50, len(train.cells) - 1, len(self.genes) - 1)))
        if isinstance(space, str):
            self.space: StateSpace = spaces.build(space, len(self.genes), **kwargs)
        else:
            from counterflow.spaces.latent import LatentSpace

            latent = LatentSpace.from_trained(space, self.genes)
            ledger.record("vae", CellKeys.of(LatentSpace.trained_on(space)))
            kwargs.update(latent.size)
            self.space = latent
        self.module = self.build_module(None, self.vocabulary.seen)  # wrong options are refused here, before anything is trained
        if isinstance(self.config["backbone"], nn.Module):
            ledger.remark("backbone", "a module of yours: what its weights were trained on is not known")
        ledger.record("reference", train.keys)
        self.reference = Reference.keep(
            train, adata.obs[screen.split == "train"], self.setup, self.config["keep_controls"], self.config["seed"]
        )
        self.trained_on = {
            "cells": len(train.cells),
            "control_cells": int(train.is_control.sum()),
            "held_out_cells": int((screen.split == "test").sum()),
        }
        if n_given > adata.n_obs:
            self.trained_on["dropped_cells"] = n_given - adata.n_obs

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        perturbation_key: str,
        control: str,
        layer: str | None = None,
        matrix_state: Literal["counts", "log1p"] = "counts",
        covariate_keys: Sequence[str] = (),
        match_keys: Sequence[str] = (),
        dose_key: str | None = None,
        time_key: str | None = None,
        library_size_key: str | None = None,
        delimiter: str = "+",
        split_key: str | None = None,
        drop_missing: bool = False,
        drop_empty_cells: bool = False,
    ) -> None:
        """Declare what the columns and the matrix of `adata` are; verified now, stored in ``adata.uns["_counterflow"]``.

        Parameters
        ----------
        adata
            Cells x genes.
        perturbation_key, control
            Column that says what was done to each cell, and its label for control cells.
        layer, matrix_state
            Where the expression is (``None``: X) and what it is: raw ``counts`` or ``log1p`` of normalised counts.
        covariate_keys
            Categorical columns that the network reads (cell type, donor, batch, ...).
        match_keys
            Categorical columns that say which controls belong with which perturbed cells; they pair and nothing else.
        dose_key, time_key
            Columns with dose (a number, or numbers joined by `delimiter` for combinations) and time after the perturbation.
        library_size_key
            Column with the counts of the cell over *all* genes, where the file holds a subset of genes.
        delimiter
            Joins the parts of a combination.
        split_key
            Column with ``train``, ``val``, ``test``; everything is fitted on ``train`` only.
        drop_missing, drop_empty_cells
            Leave out cells without a value in a declared column, or without a count; how many is said, and kept in `trained_on`.

        Raises
        ------
        DataError
            Listing everything that is wrong, with the way to mend it.
        """
        setup = Setup.from_dict({name: value for name, value in locals().items() if name not in ("cls", "adata")})
        declare(adata, setup)

    # ------------------------------------------------------------------ training

    def train(
        self,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        accelerator: str = "auto",
        devices: Any = "auto",
        batch_size: int = 512,
        precision: Any = "32-true",
        early_stopping: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
        *,
        force_data: bool = False,
        memory_limit: float | None = None,
        max_seconds: float | None = None,
        set_size: int = 64,
        compile: bool = False,
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
        callbacks: Sequence[Any] = (),
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the space, then the flow, on the training cells.

        Parameters
        ----------
        max_epochs, max_steps
            Length; an epoch is as many steps as it takes to see as many cells as there are. Default: 200 steps.
        max_seconds
            Length in processor seconds, over all of what is fitted: a few steps are timed and `n_steps_trained` is set from that, at least
            1, so that the same number given as `max_steps` repeats the fit.
        lr, weight_decay
            Of AdamW, after a linear warm-up, decayed by a cosine.
        batch_size, set_size
            Target cells per step, in sets of `set_size` cells of one condition and context with as many matched controls.
        precision
            Of Lightning. ``bf16-mixed`` computes in bfloat16, except for norms, softmax, the states of a scan and the flow's time.
        early_stopping
            Stop when the loss on the ``val`` cells of `split_key` no longer falls.
        resume_from
            ``checkpoints/last.ckpt`` of an interrupted run of the same model; nothing else is read from it than tensors.
        force_data
            Resume although the cells are not those that the checkpoint was trained on.
        memory_limit
            Gigabytes the fit may take, by an estimate made before it begins; ``None``: what is free.
        compile
            Train through `torch.compile`, for long fits: starts after a minute or more, then may run faster. Needs a C++ compiler.
        run_dir
            Where ``metrics.csv`` and ``checkpoints/`` are kept; nothing is written without it.
        callbacks
            Lightning callbacks of your own.
        trainer_kwargs
            For `lightning.Trainer`.
        """
        if self.adata is None:
            raise ConfigError("this model was loaded without data: give adata to CounterFlow.load to train it anew")
        for name, value in {"max_epochs": max_epochs, "max_steps": max_steps, "batch_size": batch_size, "set_size": set_size}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        if max_seconds is not None and (max_steps is not None or max_epochs is not None or max_seconds <= 0):
            raise ConfigError(f"max_seconds={max_seconds:g} must be positive, and max_steps and max_epochs left out: the time decides")
        if lr <= 0 or weight_decay < 0:
            raise ConfigError(f"lr={lr:g} must be positive and weight_decay={weight_decay:g} must not be negative")
        if early_stopping and not self._validation_rows().any():
            raise ConfigError("early_stopping=True needs cells to watch: mark some perturbed cells 'val' in the column of split_key")
        if compile:
            check_compiler()
        check_memory(self.memory_needed(), memory_limit)
        from counterflow import training  # noqa: F401  Lightning takes seconds to import: not on the clock

        started = time_module.process_time()
        seed, cells = self.config["seed"], self._train_cells
        self.ledger = ledger = Ledger.unknown("genes", "features", "reference") if self.ledger is None else self.ledger
        ledger.forget("space", "order", "rule", "weights", "recipe", "validation", "guidance")
        fit_space(self.space, cells, seed, ledger)
        states = states_of(cells, self.space)
        some_controls = np.flatnonzero(cells.is_control)[:2000]
        order = None
        if reads_order(self.config["backbone"]):
            ledger.record("order", cells.rows(some_controls).keys)
            order = feature_order(states(some_controls))
        n_sets, set_size = max(1, batch_size // set_size), min(set_size, batch_size)
        if max_steps is None:
            max_steps = DEFAULT_STEPS if max_epochs is None else max_epochs * max(1, -(-len(cells.cells) // (n_sets * set_size)))
        plan: dict[str, Any] = {"n_sets": n_sets, "set_size": set_size, "seed": seed, "start": 0, "stop": max_steps}
        options: dict[str, Any] = {
            "lr": lr, "weight_decay": weight_decay, "seed": seed, "progress": progress, "accelerator": accelerator, "devices": devices,
            "precision": precision, "compile": compile, **trainer_kwargs,
        }  # fmt: skip
        recipe = Recipe(
            lambda seen: self.build_module(order, seen),
            self.setup,
            self.vocabulary,
            self.config["anchor"] == "additive",
            plan,
            options,
            ledger,
        )
        if max_seconds is not None:
            steps = None if resume_from is None else planned_steps(resume_from)  # what was measured when the run was started
            steps = steps or recipe.steps_within(max_seconds - (time_module.process_time() - started), cells, states)
            recipe = replace(recipe, plan=plan | {"stop": steps})
        self.n_steps_trained = recipe.plan["stop"]
        files = {"early_stopping": early_stopping, "run_dir": run_dir, "resume_from": resume_from, "callbacks": callbacks}
        if run_dir is not None or resume_from is not None:
            files |= {"data": cells.fingerprint, "force_data": force_data}
        if run_dir is not None:
            recipe = replace(recipe, options=options | {"parts": Path(run_dir) / "checkpoints"})
        self.module, rule, self.history = recipe.fit(cells, states, self._validation_cells(), **files)
        self.rule = None if rule is None else Recentring(rule, fit_gene_rule(cells, ledger))
        self.trust = {} if rule is None else recipe.trust(cells, states, self.module, rule)
        self.intervals = None if self.rule is None else fit_intervals(cells, self.rule.genes.measured, seed, ledger)
        self.is_trained = True

    def memory_needed(self) -> Footprint:
        """What a fit will need, roughly."""
        counts, size = self._train_cells.counts, int(np.prod(self.space.state_shape))
        n_values = counts.nnz if in_memory(counts) else None  # type: ignore[attr-defined]
        n_weights = sum(weight.numel() for weight in self.module.parameters())
        batch = {} if self.config["backbone"] == "mlp" else {"batch": MOST_KEPT}
        n_cells, n_genes = counts.shape
        return footprint(n_cells, n_genes, n_values, space=self.config["space"], state_size=size, n_weights=n_weights, **batch)

    def _validation_cells(self) -> tuple[Screen, Callable[[np.ndarray], Tensor]] | None:
        chosen = self._validation_rows()
        if not chosen.any():
            return None
        cells = self._screen.rows(chosen)
        return cells, states_of(cells, self.space)

    def _validation_rows(self) -> np.ndarray:
        """Validation cells and the controls of their contexts (their own, too: nothing is fitted to these); without controls, no loss."""
        screen = self._screen
        control = screen.is_control & (screen.split != "test")
        watched = (screen.split == "val") & ~screen.is_control & np.isin(screen.context, screen.context[control])
        return watched | (control & watched.any())

    def build_module(self, order: Tensor | None, seen: frozenset[str]) -> FlowModule:
        """An untrained network for this model's vocabulary and space; `order` puts correlated state features side by side."""
        return assemble(self.config, self.features, self.vocabulary, self.space.state_shape, order, seen)

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        adata: AnnData | None = None,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        n_cells: int | None = None,
        solver: str | None = None,
        n_steps: int = 20,
        guidance: float = 1.0,
        guidance_kind: Literal["contrast", "classifier_free"] = "contrast",
        guidance_interval: tuple[float, float] | None = None,
        seed: int = 0,
        on_unknown: Literal["error", "mean"] = "error",
        decoder: str | None = None,
        missing_genes: Literal["error", "zero"] = "error",
        compile: bool = False,
    ) -> AnnData:
        """Control cells as they would look under other conditions.

        Parameters
        ----------
        adata
            Control cells to start from (perturbed cells in it are left out). ``None``: the controls the model was trained on.
        conditions
            A name, several names, or a DataFrame with the setup keys as columns (perturbation, dose, time; a covariate or match
            column restricts the controls to that level). ``None``: every condition of the training data.
        n_cells
            Cells per condition: a random choice of the controls, repeated when there are fewer. ``None``: all controls.
        solver, n_steps
            ``euler``, ``midpoint``, ``heun``, ``rk4``, ``dopri5``. Default: euler for a control source, midpoint for noise.
        guidance, guidance_kind, guidance_interval
            1 is none; ``contrast`` scales the effect against the control. Calibrate on validation conditions, never on test.
        seed
            Of counting noise and source noise. A cell's draw depends on the seed and the cell alone.
        on_unknown
            A perturbation without identity and features: ``error``, or ``mean`` effect with the support label ``unknown``.
        decoder
            From expected counts to counts: ``calibrated`` (default in pca, latent), ``transport``, ``sample``, ``round`` (default in raw).
        missing_genes
            Where `adata` lacks genes of the model: an ``error``, or ``zero`` counts (of a tenth of the genes at most).
        compile
            Sample through `torch.compile`: starts after a minute or more, then may run faster. States agree to rounding, so that now and
            then a count differs by one. Needs a C++ compiler.

        Returns
        -------
        AnnData
            One row per condition and control cell. ``X``: log1p of counts per 10,000; ``layers["counts"]`` (integers) and
            ``layers["mean"]`` (their expectation); ``obs``: that of the control with the new condition, ``source_cell`` and
            ``support`` (``seen``, ``components-seen``, ``features-only``, ``unseen-context``); ``uns["counterflow"]``: how it was made;
            its ``genes``: how many were found by name (used), left out (extra) and counted as zero (missing).

        Notes
        -----
        A cell comes out alike in any company, but where the model keeps no control cells of its context (a new donor, or
        ``keep_controls=0``): there the means are set on the given cells together.
        """
        how = Sampling(solver, n_steps, guidance, guidance_kind, guidance_interval, seed, decoder)
        return stack(list(self._predicted(adata, conditions, n_cells, how, on_unknown, missing_genes, compile, None)), self.setup)

    def predict_in_blocks(
        self,
        adata: AnnData | None = None,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        n_cells: int | None = None,
        sampling: Sampling | None = None,
        on_unknown: Literal["error", "mean"] = "error",
        missing_genes: Literal["error", "zero"] = "error",
        compile: bool = False,
        cells_per_block: int = 4096,
        progress: bool = True,
    ) -> Iterator[AnnData]:
        """The cells of `predict`, to the bit, some at a time: as many as are wanted, in bounded memory.

        Parameters
        ----------
        adata, conditions, n_cells, on_unknown, missing_genes, compile
            As in `predict`.
        sampling
            Solver, steps, guidance, seed and decoder; ``None``: the defaults of `predict`.
        cells_per_block
            At most so many cells of one condition come together.
        progress
            Show a bar with the time left, where somebody watches.
        """
        how, most = sampling or Sampling(), Blocks(cells_per_block, progress)
        return self._predicted(adata, conditions, n_cells, how, on_unknown, missing_genes, compile, most)

    def _predicted(
        self,
        adata: AnnData | None,
        conditions: str | Sequence[str] | pd.DataFrame | None,
        n_cells: int | None,
        how: Sampling,
        on_unknown: str,
        missing_genes: str,
        compile: bool,
        most: Blocks | None,
    ) -> Iterator[AnnData]:
        self._check_trained()
        how.resolve(self.config["source"])
        how = replace(how, decoder=how.decode_by(self.space.decoder, self.rule is not None))
        check_n_cells(n_cells)
        specs, table = requested_specs(conditions, on_unknown, self.setup, self.vocabulary)
        cells, obs, var = self._controls(adata, missing_genes)
        genes = gene_report(self.genes, self.genes if adata is None else adata.var_names)
        names, cells = cells.cells, replace(cells, cells=distinct_names(cells.cells))
        origins, asked = self._origins(), []
        for i in range(len(specs)):
            rows = matching_rows(obs, dict(table.iloc[i]))
            if n_cells is not None:
                draw = np.random.default_rng([how.seed, 1])
                rows = np.sort(np.concatenate([draw.permutation(rows) for _ in range(-(-n_cells // len(rows)))])[:n_cells])
            asked.append(rows)
        uns = made_by(self.config, how, specs, self.setup) | {"genes": genes}
        for i, part in blocks_of([len(rows) for rows in asked], most):
            if part.start == 0:
                rows, used, at = asked[i], *np.unique(asked[i], return_inverse=True)
                some = cells.rows(used)  # each once, however often it is used
                support = support_labels(specs[i], some, self.vocabulary)
                correction = self._correction(specs[i], some, support, origins, how, calibrated=how.decoder == "calibrated")
                seeds, again = cell_seeds(cells.cells[row] for row in rows), occurrences([names[row] for row in rows])
            here, fewer = at[part], replace(correction, group=correction.group[at[part]])
            with compiled(self.module.backbone, compile):
                counts, expected = self._counterfactual(specs[i], some.rows(here), fewer, how, seeds[part])
            called = [names[row] for row in rows[part]]
            named = describe_rows(obs.iloc[rows[part]], specs[i], self.setup, called, [support[row] for row in here], again[part])
            yield to_anndata(counts, expected, some.library[here], named, var, uns)

    def predict_effect(
        self,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        interval: float | None = 0.9,
        *,
        adata: AnnData | None = None,
        cells: float | None = None,
        n_cells: int = 512,
        n_steps: int = 20,
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
            raise ConfigError(f"this model learnt no intervals ({why}); without them: predict_effect(..., interval=None)")
        some = self.effects(
            adata, conditions, cells, seed, n_cells=n_cells, n_steps=n_steps, on_unknown=on_unknown, missing_genes=missing_genes
        )
        moved = {one.perturbation: one.effect for one in self.on_target() if one.direction}
        return effect_table(some, self.genes, self.setup, interval, moved)

    def on_target(self) -> tuple[OnTarget, ...]:
        """Does each perturbed gene itself change? As measured in training, for perturbations named after a gene of the model."""
        self._check_trained()
        return () if self.rule is None else on_target(self.rule.genes.measured, self.genes)

    def effects(
        self,
        adata: AnnData | None,
        conditions: str | Sequence[str] | pd.DataFrame | None,
        cells: float | None = None,
        seed: int = 0,
        *,
        n_cells: int = 512,
        n_steps: int = 20,
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
                yield effect_of(spec, some, counts, label, kind, genes, self.intervals, cells)

    def _counterfactual(
        self, spec: ConditionSpec, cells: Screen, correction: Correction, how: Sampling, seeds: np.ndarray
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts and expectation of control `cells` under `spec`."""
        ids, factual = self._ids(spec, cells), self._ids(ConditionSpec(), cells)
        device = next(self.module.parameters()).device
        return counterfactual(self.module, self.space, cells, ids, factual, correction, how, seeds, device)

    def generate(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        *,
        covariates: dict[str, str] | None = None,
        seed: int = 0,
        n_steps: int = 20,
    ) -> AnnData:
        """New cells under `conditions`, no controls given: from the model's own reference controls or noise.

        Counts are drawn from the decoded negative binomial (rounded in raw space), library sizes from a log-normal per context.

        Parameters
        ----------
        conditions
            As in `predict`.
        n_cells
            Cells per condition.
        covariates
            Restricts the reference controls to these levels, e.g. ``{"cell_type": "NK"}``.
        seed
            Of everything random.
        """
        return stack(list(self._generated(conditions, n_cells, covariates, seed, n_steps, None)), self.setup)

    def generate_in_blocks(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        *,
        covariates: dict[str, str] | None = None,
        seed: int = 0,
        n_steps: int = 20,
        cells_per_block: int = 4096,
        progress: bool = True,
    ) -> Iterator[AnnData]:
        """The cells of `generate`, to the bit, some at a time; see `predict_in_blocks`."""
        return self._generated(conditions, n_cells, covariates, seed, n_steps, Blocks(cells_per_block, progress))

    def _generated(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        covariates: dict[str, str] | None,
        seed: int,
        n_steps: int,
        most: Blocks | None,
    ) -> Iterator[AnnData]:
        self._check_trained()
        how = Sampling(n_steps=n_steps, seed=seed, decoder="round" if self.space.decoder == "round" else "sample")
        how.resolve(self.config["source"])
        check_n_cells(n_cells)
        specs, table = requested_specs(conditions, "error", self.setup, self.vocabulary)
        cells, obs, var = self.reference.cells(self.setup, self.genes)
        for key, level in (covariates or {}).items():
            if key not in obs:
                raise ConfigError(f"covariates has {key!r}, which setup_anndata did not name: {near(key, obs.columns)}")
            table[key] = level
        device, origins = next(self.module.parameters()).device, self._origins()
        calibrated = self.rule is not None and self.space.decoder == "transport"
        uns, asked = made_by(self.config, how, specs, self.setup), [matching_rows(obs, dict(table.iloc[i])) for i in range(len(specs))]
        for i, part in blocks_of([n_cells] * len(specs), most):
            if part.start == 0:
                rows = np.random.default_rng([seed, 2]).choice(asked[i], n_cells)
                used, at = np.unique(rows, return_inverse=True)
                some = cells.rows(used)  # each once, however often it is used
                library = self.reference.draw_libraries(cells.contexts, cells.context[rows], seed)
                seeds = cell_seeds(cells.cells[row] for row in rows)
                support = support_labels(specs[i], some, self.vocabulary)
                correction = self._correction(specs[i], some, support, origins, how, calibrated=calibrated)
                first = n_cells * specs[:i].count(specs[i])  # asked for in another context before
            start, fewer = some.rows(at[part]), replace(correction, group=correction.group[at[part]])
            ids = self._ids(specs[i], start)
            counts, expected = new_cells(self.module, self.space, start, library[part], ids, fewer, how, seeds[part], device)
            called, never = [f"new{first + n}" for n in range(part.start, part.stop)], np.zeros(part.stop - part.start, dtype=np.int64)
            named = describe_rows(obs.iloc[rows[part]], specs[i], self.setup, called, [support[row] for row in at[part]], never)
            yield to_anndata(counts, expected, library[part], named.drop(columns="source_cell"), var, uns)

    def get_latent_representation(self, adata: AnnData | None = None) -> np.ndarray:
        """States of cells (n x S) in the space of the flow; ``None``: the training AnnData."""
        self._check_trained()
        if adata is None and self.adata is None:
            raise ConfigError("this model was loaded without data: give adata")
        if adata is None:
            return encoded(self.space, self._screen)
        return encoded(self.space, read_cells(adata, self.setup, self.genes, controls_only=False)[0])

    @torch.no_grad()
    def get_perturbation_embedding(self) -> pd.DataFrame:
        """One row per perturbation seen in training: its condition token (C numbers) at dose 1."""
        self._check_trained()
        names = sorted(self.vocabulary.seen)
        specs = [ConditionSpec((name,), (1.0,), 0.0) for name in names]
        ids = self.vocabulary.ids(specs, {key: [""] * len(specs) for key in self.vocabulary.covariates})
        return pd.DataFrame(self.module.encoder(ids).tokens[:, 1].numpy(), index=pd.Index(names, name=self.setup.perturbation_key))

    def audit(self, adata: AnnData | None = None, subset: str = "test", on_unknown: Literal["error", "mean"] = "error") -> str:
        """Check that nothing fitted here saw a held-out cell of `adata` (None: the training AnnData); see `audit_model`."""
        self._check_trained()
        if adata is None and self.adata is None:
            raise ConfigError("this model was loaded without data: give adata")
        return audit_model(self, self.adata if adata is None else adata, subset, on_unknown)

    def fitted_parts(self) -> dict[str, dict[str, np.ndarray]]:
        """Everything that was learnt, by stage (`counterflow.data.ledger.STAGES`) and name."""
        from counterflow import saving

        self._check_trained()
        return saving.fitted_parts(self)

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise ConfigError("the model is not trained: call model.train() first")

    def _controls(self, adata: AnnData | None, missing_genes: str) -> tuple[Screen, pd.DataFrame, pd.DataFrame]:
        if adata is not None:
            cells, positions = read_cells(adata, self.setup, self.genes, missing_genes=missing_genes)
            check_library(cells, adata.var_names.difference(self.genes, sort=False), self.reference, self.setup)
            return cells, adata.obs.iloc[positions], adata.var.reindex(list(self.genes))
        if self.adata is None:
            return self.reference.cells(self.setup, self.genes)
        chosen = self._screen.is_control & (self._screen.split == "train")
        return self._screen.rows(chosen), self.adata.obs[chosen], self.adata.var.loc[list(self.genes)]

    def _ids(self, spec: ConditionSpec, cells: Screen) -> ConditionIds:
        return self.vocabulary.ids([spec] * len(cells.cells), {key: list(cells.covariates[key]) for key in self.vocabulary.covariates})

    def _origins(self) -> Origins:
        return Origins(self.reference.cells(self.setup, self.genes)[0] if len(self.reference.library) else None, self.space)

    def _correction(
        self, spec: ConditionSpec, cells: Screen, support: Sequence[str], origins: Origins, how: Sampling, *, calibrated: bool
    ) -> Correction:
        if self.rule is None or not spec.parts:
            return Correction.none(len(cells.cells), int(np.prod(self.space.state_shape)))
        device = next(self.module.parameters()).device

        def displacement(controls: Screen, states: Tensor) -> Tensor:
            ids, factual = self._ids(spec, controls), self._ids(ConditionSpec(), controls)
            return displaced(self.module, states.to(device), controls, ids, factual, how).cpu()

        return self.rule.correction(
            spec,
            cells,
            support,
            origins,
            displacement,
            trusted(spec, self.vocabulary, self.trust),
            scale=how.effect_scale,
            calibrated=calibrated,
        )

    # ------------------------------------------------------------------ files

    def save(
        self, dir_path: str | os.PathLike[str], prefix: str | None = None, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Write safetensors and JSON to the directory `dir_path` (or ``dir_path/prefix``); the data are not needed to load it."""
        from counterflow import saving

        self._check_trained()
        path = Path(dir_path) / prefix if prefix else Path(dir_path)
        saving.save(self, path, overwrite=overwrite)
        if save_anndata:
            if self.adata is None:
                raise ConfigError("save_anndata=True, but this model was loaded without data")
            self.adata.write_h5ad(path / "adata.h5ad")

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | None = None,
        *,
        prefix: str | None = None,
        backbone: nn.Module | None = None,
        trust_packages: Sequence[str] = (),
    ) -> CounterFlow:
        """Read a saved model or a run directory.

        Parameters
        ----------
        dir_path, prefix
            As given to `save`, or a run directory.
        adata
            Data to predict from by default; not needed.
        backbone
            The module to fill, for a model that was built around a ready `nn.Module`.
        trust_packages
            Packages whose import strings in the file may be used.

        Raises
        ------
        CheckpointError
            If anything is missing, damaged, or from a newer version.
        """
        from counterflow import saving

        model = saving.load(cls, Path(dir_path) / prefix if prefix else Path(dir_path), backbone, trust_packages)
        if adata is not None:
            model.attach(adata)
        return model

    def attach(self, adata: AnnData) -> None:
        """Give a loaded model data to predict from; declared as the training data were, if it is not yet."""
        declare(adata, self.setup)
        adata = kept_cells(adata)
        self._screen = read_screen(adata, self.setup, self.genes)
        self._train_cells = self._screen.rows(self._screen.split == "train")
        self.adata = adata

    def __repr__(self) -> str:
        c = self.config
        state = "trained" if self.is_trained else "not trained"
        return (
            f"CounterFlow({c['backbone']} on {c['space']}, source={c['source']}, coupling={c['coupling']}, "
            f"conditioning={c['conditioning']}; "
            f"{len(self.genes)} genes, {len(self.vocabulary.seen)} perturbations; {state})"
        )
