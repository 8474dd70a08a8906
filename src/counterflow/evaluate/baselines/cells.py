"""From a predicted mean back to cells: two ways to move control cells, and the quantile map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.matrix import TARGET_SUM, log_normalised
from counterflow.spaces.counts import cell_seeds, fit_dispersion, transport

N_CALIBRATION = 200  # cells that the strength of the count transport is found on
N_CORRECTIONS = 5


def log_expression(counts: sparse.csr_matrix, library: NDArray) -> NDArray[np.float32]:
    """log1p of counts per 10,000 (dense, n x G): the scale on which everything is scored."""
    return log_normalised(counts, library).toarray()


def move_cells(expression: NDArray, effect: NDArray | None) -> NDArray[np.float32]:
    """Cells (n x G, log1p) with the mean moved by `effect`: genes going up are shifted, genes going down are scaled (zeros stay zeros)."""
    if effect is None:
        return expression
    mean = expression.mean(0)
    wanted = np.maximum(mean + effect, 0)
    factor = np.where(mean > 0, wanted / np.maximum(mean, 1e-12), 1.0)
    return np.where(effect >= 0, expression + effect, expression * factor).astype(np.float32)


def transport_cells(
    counts: sparse.csr_matrix, library: NDArray, effect: NDArray | None, cells: tuple[str, ...], seed: int = 0
) -> NDArray[np.float32]:
    """Cells with the mean log expression moved by `effect`, by count transport: thinned or added counts, so that zeros stay credible.

    The rule knows means of logarithms, the transport needs ratios of rates: they are found by a few Newton steps in the rate
    after, on some of the cells.
    """
    before = log_expression(counts, library)
    if effect is None:
        return before
    seeds = cell_seeds(cells)
    depth = library / TARGET_SUM
    rate = np.asarray(counts.sum(0)).ravel() / max(float(depth.sum()), 1e-12)
    theta = fit_dispersion(counts, depth[:, None] * rate)
    some = np.random.default_rng(seed).permutation(len(depth))[:N_CALIBRATION]
    wanted = np.maximum(before[some].mean(0, dtype=np.float64) + effect, 0)
    reached = before[some].mean(0, dtype=np.float64)
    ratio = np.divide(wanted, reached, out=np.ones_like(wanted), where=reached > 0)
    after = np.where(rate > 0, rate * np.clip(ratio, 0.01, 100), np.expm1(wanted))  # exact where a gene has at most one count per cell
    for _ in range(N_CORRECTIONS):
        moved = transport(counts[some], depth[some, None] * rate, depth[some, None] * after, theta, seed, seeds[some])
        after = _closer(after, wanted, moved, library[some])
    moved = transport(counts, depth[:, None] * rate, depth[:, None] * after, theta, seed, seeds)
    return log_expression(sparse.csr_matrix(moved), library)


def _closer(rate: NDArray, wanted: NDArray, counts: NDArray, library: NDArray) -> NDArray:
    """One Newton step in log rate towards the wanted mean log expression, at most fourfold.

    The slope is that of Poisson counts: d E f(x) / d log(rate) = rate E [f(x + 1) - f(x)].
    """
    scale = TARGET_SUM / np.maximum(library, 1.0)[:, None]
    reached = np.log1p(scale * counts)
    slope = rate * ((np.log1p(scale * (counts + 1)) - reached) / scale).mean(0)
    mean = reached.mean(0)
    step = np.divide(wanted - mean, slope, out=np.zeros_like(mean), where=slope > 1e-9)
    return rate * np.exp(np.clip(step, -np.log(4), np.log(4)))


def quantile_mapped(cells: NDArray, control: NDArray, perturbed: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """Each gene of `cells` through the quantile map control -> perturbed; ties (zeros above all) are split at random.

    Beyond the range of the control, values keep their distance to its end.
    """
    ordered, target = np.sort(control, 0), np.sort(perturbed, 0)
    out = np.empty(cells.shape, dtype=np.float32)
    uniform = rng.random(cells.shape)
    at = (np.arange(len(target)) + 0.5) / len(target)
    for g in range(cells.shape[1]):
        x = cells[:, g]
        lo, hi = np.searchsorted(ordered[:, g], x, "left"), np.searchsorted(ordered[:, g], x, "right")
        rank = (lo + uniform[:, g] * np.maximum(hi - lo, 1)) / (len(ordered) + 1)
        beyond = np.maximum(x - ordered[-1, g], 0)
        out[:, g] = np.interp(rank, at, target[:, g]) + beyond
    return out
