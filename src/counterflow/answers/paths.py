"""What a fitted model is asked: which way cells take. `CounterFlow` inherits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from counterflow.answers.effects import EffectAnswers
from counterflow.data.source import whole
from counterflow.errors import ConfigError
from counterflow.flow.solvers import midpoint, trajectory
from counterflow.processor import at_work
from counterflow.requests import check_n_cells, matching_rows, requested_specs, support_labels
from counterflow.sampling import Sampling
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


class PathAnswers(EffectAnswers):
    """Questions about the way from control to perturbed."""

    @torch.no_grad()
    def get_paths(
        self, condition: str | pd.DataFrame, adata: AnnData | None = None, *, n_cells: int | None = None, n_steps: int = 20, seed: int = 0
    ) -> np.ndarray:
        """States of control cells at equal steps of the flow's time, from t = 0 to the states that `predict` decodes.

        The way is the flow's own, to scale: what rule and trust say of the mean of the population (`counterflow.recentring`) is added in
        proportion to t, and differences between cells are shrunk as in a prediction. With a noise source a cell starts at the noise that
        it came from.

        Parameters
        ----------
        condition
            One condition, as in `predict`.
        adata
            Control cells, as in `predict`.
        n_cells
            A random choice of them; ``None``: all.
        n_steps
            Midpoint steps, and so many states after the first.
        seed
            Of the choice.

        Returns
        -------
        ndarray
            ``n_steps + 1`` x cells x state.
        """
        self._check_trained()
        check_n_cells(n_cells)
        if self.module.origin is not None:
            raise ConfigError("coupling='genot' draws new noise for every prediction: a control cell has no path of its own")
        specs, table = requested_specs(condition, "error", self.setup, self.vocabulary)
        if len(specs) != 1:
            raise ConfigError(f"get_paths takes one condition; {len(specs)} were given")
        how = Sampling("midpoint", n_steps)
        _, grid = how.resolve(self.config["source"])
        controls, obs, _ = self._controls(adata, "error")
        rows = matching_rows(obs, dict(table.iloc[0]))
        rows = rows if n_cells is None else np.sort(np.random.default_rng([seed, 1]).permutation(rows)[:n_cells])
        cells = controls.rows(rows)
        support = support_labels(specs[0], cells, self.vocabulary)
        correction = self._correction(specs[0], cells, support, self._origins(), how, calibrated=False)
        control = self.space.encode(whole(cells.counts), cells.library)
        device = next(self.module.parameters()).device
        start = control.to(device)
        with at_work(self.module):
            if self.config["source"] == "noise":
                start = midpoint(self.module.velocity(self._ids(ConditionSpec(), cells)), start, grid.flip(0))
            states = trajectory(midpoint, self.module.velocity(self._ids(specs[0], cells)), start, grid).cpu()
        everyone = np.arange(len(rows))
        t = grid.reshape(-1, *[1] * control.ndim)
        if self.config["source"] == "noise":
            return (states + t * (correction.apply(control, states[-1], everyone) - states[-1])).numpy()
        k = torch.from_numpy(correction.group)
        own = states - control - t * correction.center[k]  # how each cell differs from the others, on the way
        return (control + t * correction.shift[k] + correction.spread[k][:, None] * own).numpy()
