"""What a fitted model is asked: how probable cells are. `CounterFlow` inherits it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from counterflow.answers.embeddings import EmbeddingAnswers
from counterflow.data.screen import Screen, read_cells, read_specs
from counterflow.errors import ConfigError, DataError, near
from counterflow.flow.density import MOST_EXACT, Divergence, exact, hutchinson, log_density
from counterflow.flow.solvers import dopri5
from counterflow.prediction import BLOCK
from counterflow.processor import at_work
from counterflow.requests import requested_specs
from counterflow.spaces.counts import cell_seeds, cell_signs
from counterflow.types import ConditionIds, ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


class DensityAnswers(EmbeddingAnswers):
    """Questions about densities."""

    def log_prob(
        self,
        adata: AnnData | None = None,
        condition: str | pd.DataFrame | None = None,
        *,
        trace: Literal["exact", "hutchinson"] | None = None,
        tolerance: float = 1e-3,
        seed: int = 0,
    ) -> np.ndarray:
        """Log density of the *states* of cells under a condition, in nats; only for models that start at noise.

        A density of what the flow models, so the numbers of one model compare conditions and cells, and say nothing about counts: another
        space has other units. Where the model has an additive anchor it is part of it; trust and count transport are not.

        Parameters
        ----------
        adata
            Any cells, perturbed or not. ``None``: those that the model was given.
        condition
            One condition for all cells, as in `predict`. ``None``: that of each cell, from the declared columns.
        trace
            ``exact``, or ``hutchinson``: an estimate without bias, in a fraction of the time. Default: exact for up to 64 features.
        tolerance
            Relative and absolute, of the adaptive solver (dopri5): at 1e-3 off by some .1 nats, ten times faster than at 1e-5. Cells are
            solved 256 together, so their company moves digits below it.
        seed
            Of the signs that ``hutchinson`` draws for each cell.

        Returns
        -------
        ndarray
            One number per cell.
        """
        self._check_trained()
        if self.config["source"] != "noise" or self.module.origin is not None:
            raise ConfigError("log_prob needs a density to start from: fit with source='noise' and coupling='independent'")
        width = int(np.prod(self.space.state_shape))
        trace = trace or ("exact" if width <= MOST_EXACT else "hutchinson")
        if trace not in ("exact", "hutchinson"):
            raise ConfigError(f"trace={trace!r} is unknown: {near(trace, ('exact', 'hutchinson'))}")
        if not tolerance > 0 or seed < 0:
            raise ConfigError(f"tolerance={tolerance:g} must be positive and seed={seed} must not be negative")
        cells, specs = self._asked_about(adata, condition)
        ids = self.vocabulary.ids(specs, {key: list(cells.covariates[key]) for key in self.vocabulary.covariates})
        known = {spec: self._anchor(spec, width) for spec in set(specs)}
        seeds, device = cell_seeds(cells.cells), next(self.module.parameters()).device
        solver = partial(dopri5, rtol=tolerance, atol=tolerance)

        def block(rows: np.ndarray) -> np.ndarray:
            state = self.space.encode(cells.counts[rows], cells.library[rows])
            state = (state - torch.stack([known[specs[row]] for row in rows.tolist()]).reshape(state.shape)).to(device)
            velocity = self.module.velocity(ConditionIds(*(column[torch.from_numpy(rows)].to(device) for column in ids)))
            divergence: Divergence = exact
            if trace == "hutchinson":
                divergence = hutchinson(torch.from_numpy(cell_signs(seed, seeds[rows], width)).to(state).reshape(state.shape))
            return log_density(velocity, state, divergence, solver).double().cpu().numpy()

        n = len(cells.cells)
        with at_work(self.module), torch.no_grad():
            return np.concatenate([block(np.arange(start, min(start + BLOCK, n))) for start in range(0, n, BLOCK)])

    def _anchor(self, spec: ConditionSpec, width: int) -> torch.Tensor:
        if self.rule is None:
            return torch.zeros(width)
        return torch.from_numpy(self.rule.states.anchor(spec).astype(np.float32))

    def _asked_about(self, adata: AnnData | None, condition: str | pd.DataFrame | None) -> tuple[Screen, list[ConditionSpec]]:
        """The cells, and the condition under which each is looked at."""
        if adata is None and self.adata is None:
            raise ConfigError("this model was loaded without data: give adata")
        adata = self.adata if adata is None else adata
        assert adata is not None
        cells, _ = read_cells(adata, self.setup, self.genes, controls_only=False)
        if condition is not None:
            specs, _ = requested_specs(condition, "error", self.setup, self.vocabulary)
            if len(specs) != 1:
                raise ConfigError(f"log_prob takes one condition, or none for that of each cell; {len(specs)} were given")
            return cells, specs * len(cells.cells)
        setup = self.setup
        for key in filter(None, (setup.perturbation_key, setup.dose_key, setup.time_key)):
            if key not in adata.obs:
                raise DataError(f"adata.obs has no column {key!r}, which says what was done to each cell: add it, or give condition=...")
        specs = read_specs(adata.obs, setup)
        unknown = sorted({part for spec in set(specs) for part in self.vocabulary.unknown(spec)})
        if unknown:
            raise DataError(
                f"{len(unknown)} perturbations of these cells were neither seen in training nor have features (first: {unknown[0]!r}): "
                "leave their cells out, or give condition=..."
            )
        return cells, specs
