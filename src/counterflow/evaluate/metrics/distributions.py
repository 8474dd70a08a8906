"""Metrics of clouds of cells: is the spread right, are the zeros there, can a classifier tell predicted from real?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from counterflow.evaluate.metrics.means import top_genes

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

FEWEST_CELLS_TO_CLASSIFY = 20
SMALLEST_STD = 1e-3


def equal_size(predicted: NDArray, real: NDArray, generator: np.random.Generator, *, at_most: int = 1000) -> tuple[NDArray, NDArray]:
    """As many random rows of each, because all the distances here depend on the number of cells."""
    n = min(len(predicted), len(real), at_most)
    return tuple(x[np.sort(generator.choice(len(x), n, replace=False))] for x in (predicted, real))  # type: ignore[return-value]


def energy(predicted_pcs: NDArray, real_pcs: NDArray, *, squared: bool = False) -> float:
    """Energy distance ``2 E|X-Y| - E|X-X'| - E|Y-Y'|``, unbiased, so it can be slightly negative.

    Parameters
    ----------
    squared
        Reproduces the "E-distance" of some published code: squared Euclidean cost and averages over all pairs, the cells with
        themselves included. That is exactly ``2 |mean difference|²`` and sees nothing of the spread: only for comparison.
    """
    if min(len(predicted_pcs), len(real_pcs)) < 2:
        return float("nan")
    cost = _squared_distances if squared else _distances
    within = np.mean if squared else _mean_of_others
    return float(2 * cost(predicted_pcs, real_pcs).mean() - within(cost(predicted_pcs, predicted_pcs)) - within(cost(real_pcs, real_pcs)))


def mmd(predicted_pcs: NDArray, real_pcs: NDArray) -> float:
    """Unbiased squared maximum mean discrepancy.

    The kernel is the mean of exp(-d² / b) for b = 1/4, 1/2, 1, 2, 4 times the median squared distance of real cells.
    """
    if min(len(predicted_pcs), len(real_pcs)) < 2:
        return float("nan")
    from scipy.spatial.distance import pdist

    median = np.median(pdist(real_pcs, "sqeuclidean"))
    if not median > 0:
        return float("nan")

    def kernel(a: NDArray, b: NDArray) -> NDArray:
        distance = _squared_distances(a, b) / median
        return np.mean([np.exp(-distance / factor) for factor in (0.25, 0.5, 1, 2, 4)], axis=0)

    across = kernel(predicted_pcs, real_pcs).mean()
    return float(_mean_of_others(kernel(predicted_pcs, predicted_pcs)) + _mean_of_others(kernel(real_pcs, real_pcs)) - 2 * across)


def w2(predicted_pcs: NDArray, real_pcs: NDArray) -> float:
    """2-Wasserstein distance by exact optimal transport; cubic time, so take at most 1000 cells or so (`equal_size`)."""
    from ot import emd2, unif

    cost = _squared_distances(predicted_pcs, real_pcs)
    return float(np.sqrt(max(emd2(unif(len(predicted_pcs)), unif(len(real_pcs)), cost, numItermax=1_000_000), 0)))


def sinkhorn(predicted_pcs: NDArray, real_pcs: NDArray, *, epsilon: float = 0.05) -> float:
    """Debiased Sinkhorn divergence with squared Euclidean cost; `epsilon` in units of the median cost (arXiv 1810.08278).

    0 for equal clouds, between the squared W2 (epsilon to 0) and the squared distance of the means (epsilon to infinity).
    """
    clouds = {"across": (predicted_pcs, real_pcs), "predicted": (predicted_pcs, predicted_pcs), "real": (real_pcs, real_pcs)}
    regularisation = epsilon * np.median(_squared_distances(predicted_pcs, real_pcs))
    if not regularisation > 0:
        return float("nan")
    value = {name: _entropic_cost(a, b, regularisation) for name, (a, b) in clouds.items()}
    return value["across"] - (value["predicted"] + value["real"]) / 2


def _entropic_cost(a: NDArray, b: NDArray, regularisation: float) -> float:
    """Entropic transport cost between uniform clouds, from its dual potentials (relative to the product measure)."""
    from ot import sinkhorn as plan
    from ot import unif

    weights = unif(len(a)), unif(len(b))
    _, log = plan(*weights, _squared_distances(a, b), regularisation, method="sinkhorn_log", numItermax=2000, stopThr=1e-6, log=True)
    f = regularisation * (log["log_u"] - np.log(weights[0]))
    g = regularisation * (log["log_v"] - np.log(weights[1]))
    return float(f.mean() + g.mean())


def c2st_pca(predicted_pcs: NDArray, real_pcs: NDArray, *, seed: int = 0) -> float:
    """Classifier two-sample test: cross-validated AUROC of a logistic regression on principal components; .5 is best."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _auroc(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), predicted_pcs, real_pcs, seed)


def c2st_gene(predicted: NDArray, real: NDArray, *, n_genes: int = 200, seed: int = 0) -> float:
    """Classifier two-sample test: a random forest on the genes of highest variance; .5 is best.

    The hardest of all to pass: it finds misplaced zeros, and impossible values between counts. The genes are chosen on both
    clouds together, because genes that vary most in one of them vary less in the other by chance alone.
    """
    from sklearn.ensemble import RandomForestClassifier

    top = top_genes(np.concatenate([predicted, real]).var(0), n_genes)
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=seed)
    return _auroc(forest, predicted[:, top], real[:, top], seed)


def std_log2ratio(predicted: NDArray, real: NDArray, abs_t: NDArray, *, n_genes: int = 50) -> float:
    """Median log2 ratio of predicted to real standard deviation over the genes that change most; 0 is best.

    Genes with a real standard deviation below 1e-3 are dropped; predicted ones count as at least 1e-3.
    """
    top = top_genes(abs_t, n_genes)
    predicted_std, real_std = predicted[:, top].std(0), real[:, top].std(0)
    kept = real_std >= SMALLEST_STD
    if not kept.any():
        return float("nan")
    return float(np.median(np.log2(np.maximum(predicted_std[kept], SMALLEST_STD) / real_std[kept])))


def w1_de50(predicted: NDArray, real: NDArray, abs_t: NDArray, *, n_genes: int = 50) -> float:
    """Mean one-dimensional Wasserstein distance over the genes that change most."""
    from scipy.stats import wasserstein_distance

    return float(np.mean([wasserstein_distance(predicted[:, g], real[:, g]) for g in top_genes(abs_t, n_genes)]))


def precision(predicted_pcs: NDArray, real_pcs: NDArray, *, k: int = 5) -> float:
    """Share of predicted cells that lie within the k-th neighbour distance of some real cell (arXiv 1904.06991)."""
    return _share_inside(predicted_pcs, real_pcs, k)


def recall(predicted_pcs: NDArray, real_pcs: NDArray, *, k: int = 5) -> float:
    """Share of real cells that lie within the k-th neighbour distance of some predicted cell; 0 for a collapsed cloud."""
    return _share_inside(real_pcs, predicted_pcs, k)


def coverage(predicted_pcs: NDArray, real_pcs: NDArray, *, k: int = 5) -> float:
    """Share of real cells with a predicted cell within their k-th real neighbour's distance (arXiv 2002.09797)."""
    if min(len(predicted_pcs), len(real_pcs)) <= k:
        return float("nan")
    return float((_distances(real_pcs, predicted_pcs).min(1) <= _radii(real_pcs, k)).mean())


def cover90(predicted: NDArray, real: NDArray, abs_t: NDArray, *, n_genes: int = 50) -> float:
    """Share of real values inside the closed central 90 % interval of the predicted ones, genes that change most; .9 is best."""
    top = top_genes(abs_t, n_genes)
    lo, hi = np.quantile(predicted[:, top], [0.05, 0.95], axis=0)
    return float(((real[:, top] >= lo) & (real[:, top] <= hi)).mean())


def zero_frac_err(predicted: NDArray, real: NDArray, *, threshold: float = 0.05) -> float:
    """Mean over genes of the difference in the share of cells that express them. Shifts of log data fail it."""
    return float(np.abs((predicted > threshold).mean(0) - (real > threshold).mean(0)).mean())


def _auroc(classifier: ClassifierMixin, predicted: NDArray, real: NDArray, seed: int) -> float:
    """Mean over five folds, folded to at least .5: a classifier that is always wrong has found a difference too."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if min(len(predicted), len(real)) < FEWEST_CELLS_TO_CLASSIFY:
        return float("nan")
    x = np.concatenate([predicted, real])
    y = np.repeat([1, 0], [len(predicted), len(real)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    area = cross_val_score(classifier, x, y, cv=folds, scoring="roc_auc").mean()
    return float(max(area, 1 - area))


def _share_inside(points: NDArray, support: NDArray, k: int) -> float:
    """Share of `points` within the neighbourhood of some cell of `support`."""
    if min(len(points), len(support)) <= k:
        return float("nan")
    return float((_distances(points, support) <= _radii(support, k)).any(1).mean())


def _radii(cells: NDArray, k: int) -> NDArray:
    """Distance of each cell to its k-th neighbour, itself not counted."""
    return np.partition(_distances(cells, cells), k, axis=1)[:, k]


def _mean_of_others(matrix: NDArray) -> float:
    """Mean of the off-diagonal entries."""
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1))


def _distances(a: NDArray, b: NDArray) -> NDArray:
    from scipy.spatial.distance import cdist

    return cdist(a, b)


def _squared_distances(a: NDArray, b: NDArray) -> NDArray:
    from scipy.spatial.distance import cdist

    return cdist(a, b, "sqeuclidean")
