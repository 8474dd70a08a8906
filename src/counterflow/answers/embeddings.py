"""What a fitted model is asked: where cells and perturbations lie in its own spaces. `CounterFlow` inherits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from counterflow.answers.cells import CellAnswers
from counterflow.data.screen import read_cells
from counterflow.errors import ConfigError, DataError, near
from counterflow.fitting import encoded
from counterflow.types import ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData


class EmbeddingAnswers(CellAnswers):
    """Questions about representations."""

    def get_latent_representation(self, adata: AnnData | None = None, *, layer: str | None = None) -> np.ndarray:
        """States of cells (n x S) in the space of the flow, e.g. for ``adata.obsm["X_counterflow"]``.

        Parameters
        ----------
        adata
            Any cells, perturbed or not, measured or predicted. ``None``: the training AnnData.
        layer
            Where their raw counts are, if not where `setup_anndata` said: ``"counts"`` for cells that a model predicted.
        """
        self._check_trained()
        if adata is None and self.adata is None:
            raise ConfigError("this model was loaded without data: give adata")
        if adata is None:
            return encoded(self.space, self._screen)
        setup = self.setup if layer is None else replace(self.setup, layer=layer, matrix_state="counts")
        return encoded(self.space, read_cells(adata, setup, self.genes, controls_only=False)[0])

    @torch.no_grad()
    def get_perturbation_embedding(self, perturbations: Sequence[str] | None = None) -> pd.DataFrame:
        """What the network hears of each perturbation: its condition token (C numbers) at dose 1, one row per perturbation.

        Parameters
        ----------
        perturbations
            Names, also of perturbations that were never measured and are known by their features. ``None``: those seen in training.

        Raises
        ------
        DataError
            For a name that the model knows nothing about, the control, and combinations, which are sets of such tokens.
        """
        self._check_trained()
        names = sorted(self.vocabulary.seen) if perturbations is None else [str(name) for name in perturbations]
        for name in names:
            if name in self.vocabulary.entities:
                continue
            if name == self.setup.control:
                raise DataError(f"{name!r} is the control, which is the empty set of perturbations: leave it out")
            if self.setup.delimiter in name:
                raise DataError(f"{name!r} is a combination, a set of several tokens: ask for its parts")
            raise DataError(f"{name!r} was neither seen in training nor has features: {near(name, self.vocabulary.entities)}")
        specs = [ConditionSpec((name,), (1.0,), 0.0) for name in names]
        ids = self.vocabulary.ids(specs, {key: [""] * len(specs) for key in self.vocabulary.covariates})
        tokens = self.module.encoder(ids).tokens[:, -1]  # before it the context, and the course where there is one
        return pd.DataFrame(tokens.numpy(), index=pd.Index(names, name=self.setup.perturbation_key))
