"""What a fitted model is asked: counterfactual cells, new cells. `CounterFlow` inherits all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from torch import Tensor

from counterflow.assembly import objective_of
from counterflow.compiling import compiled
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, read_cells
from counterflow.effects.intervals import Intervals
from counterflow.errors import ConfigError, near
from counterflow.module import FlowModule
from counterflow.prediction import (
    Blocks,
    Correction,
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
from counterflow.reference import Reference
from counterflow.requests import check_library, check_n_cells, gene_report, matching_rows, requested_specs, support_labels, trusted
from counterflow.sampling import Sampling
from counterflow.spaces.base import StateSpace
from counterflow.spaces.counts import cell_seeds, distinct_names
from counterflow.types import ConditionIds, ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


class CellAnswers:
    """Questions about cells; what they need of a fitted model is declared here."""

    setup: Setup
    genes: tuple[str, ...]
    vocabulary: Vocabulary
    space: StateSpace
    module: FlowModule
    rule: Recentring | None
    trust: dict[str, Trust]
    intervals: Intervals | None
    reference: Reference
    config: dict[str, Any]
    adata: AnnData | None
    is_trained: bool
    _screen: Screen
    _asked: tuple[Recentring | None, Origins] | None = None

    def predict(
        self,
        adata: AnnData | None = None,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        n_cells: int | None = None,
        solver: str | None = None,
        n_steps: int | None = None,
        guidance: float = 1.0,
        guidance_kind: Literal["contrast", "classifier_free"] = "contrast",
        guidance_interval: tuple[float, float] | None = None,
        seed: int = 0,
        on_unknown: Literal["error", "mean"] = "error",
        decoder: str | None = None,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        combine: Literal["encoder", "algebra"] = "encoder",
        mode: Literal["abduct", "sample"] | None = None,
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
            ``euler``, ``midpoint``, ``heun``, ``rk4``, ``dopri5``; from noise also ``sde``. Default: midpoint, 5 steps from control cells
            and 10 from noise; with objective ``meanflow`` one step of ``jump``.
        guidance, guidance_kind, guidance_interval
            1 is none; ``contrast`` scales the effect against the control. Calibrate on validation conditions, never on test.
        seed
            Of counting noise and source noise. A cell's draw depends on the seed and the cell alone.
        on_unknown
            A perturbation without identity and features: ``error``, or ``mean`` effect with the support label ``unknown``.
        decoder
            From expected counts to counts: ``calibrated`` (default in pca, latent), ``transport``, ``sample``, ``round`` (default in raw).
        precision
            ``bf16-mixed``: the network computes in bfloat16, in half the time or less where the processor can; states stay in fp32.
        combine
            How the flow reads a combination: ``encoder``, its parts pooled as learnt, or ``algebra``, the sum of what each part alone does.
        mode
            Where the flow starts at noise: ``abduct`` follows each control cell back to the noise that it came from and from there forth
            under the other condition (default), ``sample`` draws new noise for it (default of ``sde``, ``jump`` and ``genot``).
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
        how = Sampling(solver, n_steps, guidance, guidance_kind, guidance_interval, seed, decoder, precision, combine, mode)
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
        skip_blocks: int = 0,
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
        skip_blocks
            The first blocks, which are there already, are not computed.
        progress
            Show a bar with the time left, where somebody watches.
        """
        how, most = sampling or Sampling(), Blocks(cells_per_block, progress, skip_blocks)
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
        how = how.suited(objective_of(self.config))
        how.resolve(self.config["source"])
        how.inverts(self.config["source"], self.config["coupling"])
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
        at_hand = None  # what all blocks of a condition share is found once
        for i, part in blocks_of([len(rows) for rows in asked], most):
            if i != at_hand:
                at_hand = i
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

    def generate(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        *,
        covariates: dict[str, str] | None = None,
        seed: int = 0,
        solver: str | None = None,
        n_steps: int | None = None,
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
        solver, n_steps
            As in `predict`.
        """
        return stack(list(self._generated(conditions, n_cells, covariates, seed, solver, n_steps, None)), self.setup)

    def generate_in_blocks(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        *,
        covariates: dict[str, str] | None = None,
        seed: int = 0,
        solver: str | None = None,
        n_steps: int | None = None,
        cells_per_block: int = 4096,
        skip_blocks: int = 0,
        progress: bool = True,
    ) -> Iterator[AnnData]:
        """The cells of `generate`, to the bit, some at a time; see `predict_in_blocks`."""
        most = Blocks(cells_per_block, progress, skip_blocks)
        return self._generated(conditions, n_cells, covariates, seed, solver, n_steps, most)

    def _generated(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        n_cells: int,
        covariates: dict[str, str] | None,
        seed: int,
        solver: str | None,
        n_steps: int | None,
        most: Blocks | None,
    ) -> Iterator[AnnData]:
        self._check_trained()
        decoder: str = "round" if self.space.decoder == "round" else "sample"
        how = Sampling(solver, n_steps, seed=seed, decoder=decoder, mode="sample" if self.config["source"] == "noise" else None)
        how = how.suited(objective_of(self.config))
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
        at_hand = None
        for i, part in blocks_of([n_cells] * len(specs), most):
            if i != at_hand:
                at_hand = i
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

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise ConfigError("the model is not trained: call model.train() first")

    def _counterfactual(
        self, spec: ConditionSpec, cells: Screen, correction: Correction, how: Sampling, seeds: np.ndarray
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts and expectation of control `cells` under `spec`."""
        ids, factual = self._ids(spec, cells), self._ids(ConditionSpec(), cells)
        device = next(self.module.parameters()).device
        return counterfactual(self.module, self.space, cells, ids, factual, correction, how, seeds, device)

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
        """Kept from one question to the next, until the model is trained anew."""
        if self._asked is None or self._asked[0] is not self.rule:
            kept = self.reference.cells(self.setup, self.genes)[0] if len(self.reference.library) else None
            self._asked = self.rule, Origins(kept, self.space)
        return self._asked[1]

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
