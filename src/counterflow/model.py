"""`CounterFlow`: the face users see. Names and argument order are scvi-tools' wherever it has one."""

from __future__ import annotations

import os
import time as time_module
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from counterflow import spaces
from counterflow.answers.paths import PathAnswers
from counterflow.answers.rankings import RankingAnswers
from counterflow.assembly import assemble, resolve
from counterflow.backbones import learning_rate, reads_courses
from counterflow.compiling import check_compiler
from counterflow.conditions.courses import Courses
from counterflow.data.dropping import kept_cells
from counterflow.data.genes import chosen_genes, select_genes
from counterflow.data.ledger import CellKeys, Ledger
from counterflow.data.schema import Setup, declare, setup_of
from counterflow.data.screen import Screen, read_screen
from counterflow.data.source import in_memory
from counterflow.data.stored import warn_of_place, writable
from counterflow.devices import is_first
from counterflow.effects.intervals import Intervals
from counterflow.errors import ConfigError
from counterflow.evaluate.audit import audit_model
from counterflow.fitting import axis_of, fit_courses, fit_features, fit_gene_rule, fit_intervals, fit_space, states_of, vocabulary_of
from counterflow.flow.path import Prediction
from counterflow.footprint import Footprint, check_memory, footprint
from counterflow.grouping import Grouping, gene_features, gene_sets, learnt_grouping, plain_grouping
from counterflow.loggers import check_logger
from counterflow.memory import MOST_KEPT
from counterflow.module import FlowModule, Source
from counterflow.portrait import portrait
from counterflow.recentring import Recentring, Trust
from counterflow.recipe import Recipe
from counterflow.reference import Reference
from counterflow.resuming import planned_steps
from counterflow.spaces.base import StateSpace

if TYPE_CHECKING:
    from anndata import AnnData


DEFAULT_STEPS = 200


class CounterFlow(PathAnswers, RankingAnswers):
    """Counterfactual cells of a perturbation screen, by a conditional rectified flow.

    Parameters
    ----------
    adata
        An AnnData declared with `setup_anndata`.
    backbone
        ``mlp``, ``dit``, ``set``, ``ssm``, ``longconv``, ``hybrid``, ``dynamics`` (over time or dose); or ``"package.module:Name"``,
        a class, or a ready `nn.Module`.
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
        (default with noise; ``dynamics`` always).
    objective
        ``flow``: the network learns velocities. ``meanflow``: mean velocities, which reach the data in one step or two; up to twice as
        long to train.
    time_scale
        What the flow's time is multiplied by before the network's table of sinusoids. Default: 1000 (``meanflow``: 1). With 1, velocities
        are smoother in time, and two evaluations (``midpoint``, 1 step) about as good as twenty.
    time
        How the flow's time is drawn in training: ``uniform`` (default from controls), ``logit_normal`` (default from noise) or ``mode``.
    condition_dropout
        Share of the training cells whose perturbation is hidden, which is what classifier-free guidance needs.
    mmd_weight
        Weight of a distributional term in the loss; 0 is the plain flow.
    n_top_genes
        Model this many highly variable genes (and the perturbed ones); ``None`` models all genes of the file.
    keep_controls
        Control cells per context that are stored inside the model, for `generate` and to set means on; 0 stores none.
    seed
        Seed of everything random in the fit.
    backbone_kwargs, space_kwargs, encoder_kwargs
        Options of the parts, such as ``{"depth": 4}``; one that a part does not have is an error that names the near match.

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
        mmd_weight: float = 0.0,
        objective: Literal["flow", "meanflow"] = "flow",
        time_scale: float | None = None,
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
        self.courses: Courses | None = None
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
        sets, n_features = gene_sets(self.config, self.genes, report=True), int(np.prod(self.space.state_shape))
        known_by = gene_features(self.config, train, ledger)
        self.grouping = plain_grouping(self.config, sets, n_features)._replace(known_by=known_by)
        if reads_courses(self.config["backbone"]):
            self.courses = Courses.none(axis_of(self.setup), n_features)
        self.module = self.build_module(self.grouping, self.vocabulary.seen)  # wrong options are refused here, before anything is trained
        if isinstance(self.config["backbone"], nn.Module):
            ledger.remark("backbone", "a module of yours: what its weights were trained on is not known")
        ledger.record("reference", train.keys)
        self.reference = Reference.keep(
            train, adata.obs[screen.split == "train"], self.setup, self.config["keep_controls"], self.config["seed"]
        )
        self.trained_on: dict[str, Any] = {
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

    def train(
        self,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        lr: float | None = None,
        weight_decay: float = 1e-2,
        accelerator: str = "auto",
        devices: Any = 1,
        batch_size: int = 512,
        precision: Any = "32-true",
        early_stopping: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
        *,
        force_data: bool = False,
        memory_limit: float | None = None,
        max_seconds: float | None = None,
        set_size: int = 64,
        reflow_steps: int = 0,
        compile: bool = False,
        strategy: Any = "auto",
        num_nodes: int = 1,
        run_dir: str | os.PathLike[str] | None = None,
        logger: Literal["csv", "tensorboard", "wandb"] | Any = "csv",
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
            Of AdamW, after a linear warm-up, decayed by a cosine. Default of `lr`: that of the backbone (`backbones.LEARNING_RATES`).
        batch_size, set_size
            Target cells per step, in sets of `set_size` cells of one condition and context with as many matched controls.
        accelerator
            ``auto`` takes a GPU where there is one; ``cpu`` and ``gpu`` ask for it.
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
        devices, num_nodes, strategy
            How many devices train, on how many machines, and how Lightning joins them (``ddp``); the sets of a step are shared, so the
            result is that of one device, but for the last digits. See ``docs/devices.md``.
        reflow_steps
            Train again for so many steps, on the pairs of source cells and their ends that the fitted flow makes: paths become nearly
            straight, and ``predict(solver="euler", n_steps=1)`` nearly as good as more steps. What is said of left-out conditions stays.
        compile
            Train through `torch.compile`, for long fits: starts after a minute or more, then may run faster. Needs a C++ compiler.
        run_dir
            Where ``metrics.csv`` and ``checkpoints/`` are kept; nothing is written without it.
        logger
            Where the curves go beside ``metrics.csv``: ``tensorboard``, ``wandb`` (offline, unless WANDB_MODE=online), both in
            `run_dir`; or a Lightning logger of your own.
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
        if max_seconds is not None and (devices, num_nodes) != (1, 1):
            raise ConfigError("max_seconds measures the processor seconds of one process: give max_steps or max_epochs, or devices=1")
        if reflow_steps < 0 or (reflow_steps and (max_seconds is not None or self.config["objective"] == "meanflow")):
            raise ConfigError(
                f"reflow_steps={reflow_steps} must not be negative, and goes with max_steps or max_epochs (not max_seconds) and with "
                "objective='flow': 'meanflow' needs few steps already"
            )
        lr = learning_rate(self.config["backbone"]) if lr is None else lr
        if lr <= 0 or weight_decay < 0:
            raise ConfigError(f"lr={lr:g} must be positive and weight_decay={weight_decay:g} must not be negative")
        if early_stopping and not self._validation_rows().any():
            raise ConfigError("early_stopping=True needs cells to watch: mark some perturbed cells 'val' in the column of split_key")
        check_logger(logger, run_dir)
        if compile:
            check_compiler()
        check_memory(self.memory_needed(), memory_limit)
        from counterflow import training  # noqa: F401  Lightning takes seconds to import: not on the clock

        started = time_module.process_time()
        seed, cells = self.config["seed"], self._train_cells
        self.ledger = ledger = Ledger.unknown("genes", "features", "reference") if self.ledger is None else self.ledger
        ledger.forget("space", "order", "courses", "rule", "weights", "recipe", "validation", "guidance")
        fit_space(self.space, cells, seed, ledger)
        states = states_of(cells, self.space)
        grouping = learnt_grouping(self.config, gene_sets(self.config, self.genes), cells, states, ledger)
        self.grouping = grouping = grouping._replace(known_by=self.grouping.known_by)
        if self.courses is not None:
            self.courses = fit_courses(cells, states, self.vocabulary, self.setup, ledger)
        n_sets, set_size = max(1, batch_size // set_size), min(set_size, batch_size)
        if max_steps is None:
            max_steps = DEFAULT_STEPS if max_epochs is None else max_epochs * max(1, -(-len(cells.cells) // (n_sets * set_size)))
        plan: dict[str, Any] = {"n_sets": n_sets, "set_size": set_size, "seed": seed, "start": 0, "stop": max_steps}
        options: dict[str, Any] = {
            "lr": lr, "weight_decay": weight_decay, "seed": seed, "progress": progress, "accelerator": accelerator, "devices": devices,
            "strategy": strategy, "num_nodes": num_nodes, "precision": precision, "compile": compile, **trainer_kwargs,
        }  # fmt: skip
        recipe = Recipe(
            lambda seen: self.build_module(grouping, seen),
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
        files["logger"] = logger
        if run_dir is not None or resume_from is not None:
            files |= {"data": cells.fingerprint, "force_data": force_data}
        if run_dir is not None:
            recipe = replace(recipe, options=options | {"parts": Path(run_dir) / "checkpoints"})
        self.module, rule, self.history = recipe.fit(cells, states, self._validation_cells(), **files)
        if reflow_steps:
            self.module = recipe.reflow(cells, states, self.module, rule, reflow_steps)
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

    def build_module(self, grouping: Grouping | None, seen: frozenset[str]) -> FlowModule:
        """An untrained network for this model's vocabulary and space; `grouping` says which state features sit together."""
        return assemble(self.config, self.features, self.vocabulary, self.space.state_shape, grouping or Grouping(), seen, self.courses)

    def on_panel(self, adata: AnnData, *, genes: Sequence[str] | None = None, gene_features: pd.DataFrame | None = None) -> CounterFlow:
        """The same model for cells measured on other genes: a part of its own, another order, or genes it has never seen.

        Parameters
        ----------
        adata
            Control cells on the other panel; the model keeps up to `keep_controls` of each context.
        genes
            Those to model; ``None``: all of the file.
        gene_features
            The table that the model was fitted with, if it was a table, with rows for the genes that are new.

        Raises
        ------
        ConfigError
            If this kind of model knows its genes by their numbers only (see ``docs/tokens.md``).
        DataError
            If a gene is new and nothing is known of it.
        """
        from counterflow import panels

        self._check_trained()
        return panels.on_panel(self, adata, genes, gene_features)

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

    def save(
        self, dir_path: str | os.PathLike[str], prefix: str | None = None, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Write safetensors and JSON to the directory `dir_path` (or ``dir_path/prefix``); the data are not needed to load it.

        Of several processes that trained the model, the first writes it.
        """
        from counterflow import saving

        self._check_trained()
        if not is_first():
            return
        path = Path(dir_path) / prefix if prefix else Path(dir_path)
        saving.save(self, path, overwrite=overwrite)
        if save_anndata:
            if self.adata is None:
                raise ConfigError("save_anndata=True, but this model was loaded without data")
            writable(self.adata, self.setup).write_h5ad(path / "adata.h5ad")

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

    def _repr_html_(self) -> str:
        return portrait(self)

    def __repr__(self) -> str:
        c = self.config
        state = "trained" if self.is_trained else "not trained"
        return (
            f"CounterFlow({c['backbone']} on {c['space']}, source={c['source']}, coupling={c['coupling']}, "
            f"conditioning={c['conditioning']}; "
            f"{len(self.genes)} genes, {len(self.vocabulary.seen)} perturbations; {state})"
        )
