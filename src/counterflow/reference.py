"""Reference controls kept inside a model, so that it can generate cells without the data. They are somebody's cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, read_contexts
from counterflow.errors import ConfigError
from counterflow.types import ConditionSpec


@dataclass(frozen=True)
class Reference:
    """Control cells (counts, library sizes, declared columns) and the library sizes of each context."""

    counts: sparse.csr_matrix  # n x G
    library: np.ndarray  # n
    obs: pd.DataFrame  # covariate and match columns, as strings; index = cell names
    log_library: dict[tuple[str, ...], tuple[float, float]]  # context -> mean and standard deviation of log library size

    @classmethod
    def keep(cls, cells: Screen, obs: pd.DataFrame, setup: Setup, per_context: int, seed: int) -> Reference:
        """A random choice of at most `per_context` control cells of each context."""
        draw = np.random.default_rng([seed, 3])
        chosen = []
        for c in range(len(cells.contexts)):
            rows = np.flatnonzero(cells.is_control & (cells.context == c))
            chosen.append(np.sort(draw.permutation(rows)[:per_context]))
        rows = np.concatenate(chosen)
        columns = list(dict.fromkeys([*setup.covariate_keys, *setup.match_keys]))
        table = obs[columns].iloc[rows].astype(str).set_axis(pd.Index([cells.cells[i] for i in rows], dtype=str))
        spread = {}
        for c, level in enumerate(cells.contexts):
            logs = np.log(np.maximum(cells.library[cells.context == c], 1.0))
            if len(logs):
                spread[level] = (float(logs.mean()), float(logs.std()))
        return cls(cells.counts[rows], cells.library[rows], table, spread)

    def cells(self, setup: Setup, genes: Sequence[str]) -> tuple[Screen, pd.DataFrame, pd.DataFrame]:
        """As a screen of controls, with obs and var."""
        n = len(self.library)
        if n == 0:
            raise ConfigError("this model keeps no control cells (keep_controls=0): give the control cells to start from (adata)")
        context, contexts = read_contexts(self.obs, setup)
        screen = Screen(
            self.counts,
            self.library,
            tuple(genes),
            tuple(self.obs.index),
            (ConditionSpec(),),
            np.zeros(n, dtype=np.int64),
            contexts,
            context,
            self.obs[list(setup.covariate_keys)],
            np.full(n, "train"),
        )
        return screen, self.obs, pd.DataFrame(index=pd.Index(genes, dtype=str))

    def draw_libraries(self, levels: Sequence[tuple[str, ...]], context: np.ndarray, seed: int) -> np.ndarray:
        """A log-normal library size for each cell, as in the training cells of its context (positions in `levels`)."""
        normal = np.random.default_rng([seed, 4]).standard_normal(len(context))
        moments = np.array([self.log_library.get(level, (np.nan, np.nan)) for level in levels])[context]
        return np.exp(moments[:, 0] + moments[:, 1] * normal).round().astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The part that is JSON."""
        return {
            "cells": list(self.obs.index),
            "obs": {str(key): list(self.obs[key]) for key in self.obs.columns},
            "log_library": [[list(level), *moments] for level, moments in self.log_library.items()],
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The part that is numbers."""
        c = self.counts
        return {
            "reference.data": c.data,
            "reference.indices": c.indices.astype(np.int32),
            "reference.indptr": c.indptr.astype(np.int64),
            "reference.library": self.library,
        }

    @classmethod
    def from_saved(cls, values: dict[str, Any], arrays: dict[str, np.ndarray], n_genes: int) -> Reference:
        """Inverse of `to_dict` and `to_arrays`."""
        shape = (len(values["cells"]), n_genes)
        counts = sparse.csr_matrix((arrays["reference.data"], arrays["reference.indices"], arrays["reference.indptr"]), shape=shape)
        obs = pd.DataFrame(values["obs"], index=pd.Index(values["cells"], dtype=str), dtype=str)
        return cls(counts, arrays["reference.library"], obs, {tuple(level): (mean, std) for level, mean, std in values["log_library"]})
