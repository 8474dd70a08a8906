"""Metrics of one condition's mean expression. All are blind to a cloud of cells collapsed to its mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_EFFECT = 1e-6  # a predicted effect this small beside the real one is rounding error, not knowledge


def pearson_delta(predicted_mean: NDArray, real_mean: NDArray, control_mean: NDArray) -> float:
    """Correlation over genes of predicted and real effect. A generic response scores high: never alone."""
    return _correlation(predicted_mean - control_mean, real_mean - control_mean)


def pearson_delta_top20(predicted_mean: NDArray, real_mean: NDArray, control_mean: NDArray, abs_t: NDArray, *, n_genes: int = 20) -> float:
    """`pearson_delta` on the genes that really change most."""
    top = top_genes(abs_t, n_genes)
    return pearson_delta(predicted_mean[top], real_mean[top], control_mean[top])


def pearson_delta_pertref(predicted_mean: NDArray, real_mean: NDArray, reference_mean: NDArray) -> float:
    """Correlation of what is particular to this condition; a generic response scores 0 (Systema, Nat Biotechnol 2025)."""
    return _correlation(predicted_mean - reference_mean, real_mean - reference_mean)


def cosine_delta(predicted_mean: NDArray, real_mean: NDArray, control_mean: NDArray) -> float:
    """Cosine of predicted and real effect; no predicted effect scores 0, no real effect is nan."""
    predicted, real = predicted_mean - control_mean, real_mean - control_mean
    if not np.any(real):
        return float("nan")
    if np.linalg.norm(predicted) <= NO_EFFECT * np.linalg.norm(real):
        return 0.0
    return float(predicted @ real / np.linalg.norm(predicted) / np.linalg.norm(real))


def r2_mean(predicted_mean: NDArray, real_mean: NDArray) -> float:
    """Share of the variance of real mean expression over genes. Above .9 for no effect at all: only to compare with papers."""
    spread = np.square(real_mean - real_mean.mean()).sum()
    return float(1 - np.square(real_mean - predicted_mean).sum() / spread) if spread > 0 else float("nan")


def r2_delta(predicted_mean: NDArray, real_mean: NDArray, control_mean: NDArray) -> float:
    """`r2_mean` of the effects."""
    return r2_mean(predicted_mean - control_mean, real_mean - control_mean)


def mse(predicted_mean: NDArray, real_mean: NDArray) -> float:
    """Mean squared error. Rewards shrunk effects, as all errors do: always next to a rank metric."""
    return float(np.square(predicted_mean - real_mean).mean())


def mae(predicted_mean: NDArray, real_mean: NDArray) -> float:
    """Mean absolute error."""
    return float(np.abs(predicted_mean - real_mean).mean())


def rmse(predicted_mean: NDArray, real_mean: NDArray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(mse(predicted_mean, real_mean)))


def l2_top1000(predicted_mean: NDArray, real_mean: NDArray, control_mean: NDArray, *, n_genes: int = 1000) -> float:
    """Euclidean distance over the genes highest in control (PerturBench, scPerturBench)."""
    top = top_genes(control_mean, n_genes)
    return float(np.linalg.norm(predicted_mean[top] - real_mean[top]))


def wmse(predicted_mean: NDArray, real_mean: NDArray, abs_t: NDArray) -> float:
    """Squared error weighted by how much genes really change: min-max of ``|t|``, squared, sum 1. Unkind to the mean baseline.

    nan where no gene differs from another in ``|t|``.
    """
    spread = np.ptp(abs_t)
    if not spread > 0:
        return float("nan")
    weight = np.square((abs_t - abs_t.min()) / spread)
    return float(weight @ np.square(predicted_mean - real_mean) / weight.sum())


def welch_t(real: NDArray, control: NDArray) -> NDArray:
    """Welch's t of each gene, cells [n x G] against control cells [m x G]; 0 for genes that vary in neither, nan below 2 cells."""
    if len(real) < 2 or len(control) < 2:
        return np.full(real.shape[1], np.nan)
    error = np.sqrt(real.var(0, ddof=1) / len(real) + control.var(0, ddof=1) / len(control))
    return np.divide(real.mean(0) - control.mean(0), error, out=np.zeros_like(error), where=error > 0)


def top_genes(strength: NDArray, n_genes: int) -> NDArray[np.intp]:
    """Columns of the `n_genes` largest values, largest first; all columns where there are fewer."""
    return np.argsort(-strength, kind="stable")[:n_genes]


def _correlation(predicted: NDArray, real: NDArray) -> float:
    """Pearson's r. A constant prediction knows nothing and scores 0; without variation in the truth there is no answer."""
    if np.ptp(real) == 0:
        return float("nan")
    if np.ptp(predicted) <= NO_EFFECT * np.ptp(real):
        return 0.0
    return float(np.corrcoef(predicted, real)[0, 1])
