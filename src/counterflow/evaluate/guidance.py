"""The guidance scale with the smallest error on validation conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from counterflow.data.screen import gene_positions
from counterflow.errors import ConfigError
from counterflow.evaluate.truth import read_truth

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.model import CounterFlow

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def choose_guidance(
    model: CounterFlow, adata: AnnData, scales: Sequence[float] = SCALES, *, subset: str = "val", **predict_options: Any
) -> float:
    """The guidance scale whose mean predictions are closest to real cells of `subset`; what it looked at enters the model's ledger.

    Parameters
    ----------
    model
        A trained model.
    adata
        Declared with ``split_key``.
    scales
        Tried in this order; of equals the first wins.
    subset
        ``val``. A scale chosen on ``test`` makes the leak audit fail.
    predict_options
        Of `CounterFlow.predict`.

    Returns
    -------
    float
        For ``predict(guidance=...)``. The error is the squared distance of mean log expression, averaged over conditions.
    """
    if not len(scales):
        raise ConfigError("scales is empty: name at least one guidance scale")
    truth = read_truth(adata, subset, 0)
    screen, columns = truth.screen, gene_positions(truth.screen.genes, model.genes)
    looked_at = [np.concatenate([unit.real for unit in truth.units])]
    errors = np.zeros(len(scales))
    for unit in truth.units:
        rows = np.flatnonzero(screen.is_control & (screen.context == unit.context_code) & (screen.split != "test"))
        looked_at.append(rows)
        real = truth.mean(unit.real)[columns]
        for i, scale in enumerate(scales):
            predicted = model.predict(adata[rows], unit.request, guidance=scale, **predict_options)
            errors[i] += ((np.asarray(predicted[:, list(model.genes)].X.mean(0)).ravel() - real) ** 2)[unit.kept[columns]].mean()
    if model.ledger is not None:
        chosen_on = screen.rows(np.unique(np.concatenate(looked_at)))
        model.ledger.record("guidance", chosen_on.on_genes(model.genes).keys)
    return float(scales[int(np.argmin(errors))])
