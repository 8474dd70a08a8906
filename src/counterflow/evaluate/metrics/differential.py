"""Metrics of differential expression: would an analyst call the same genes from the predicted cells?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GENES_AT_ONCE = 500
FEWEST_GENES = 10


class Differential(NamedTuple):
    """One test per gene of some cells against the control cells."""

    z: NDArray  # of the rank sum, positive where the cells are higher
    p: NDArray  # two-sided
    q: NDArray  # Benjamini-Hochberg
    lfc: NDArray  # log2 fold change

    def called(self, level: float = 0.05) -> NDArray[np.bool_]:
        """Which genes are significant."""
        return self.q < level


def differential(cells: NDArray, control: NDArray, *, pseudocount: float = 0.1) -> Differential:
    """Wilcoxon rank sum tests with tie correction and Benjamini-Hochberg, the tests most screens are published with.

    Parameters
    ----------
    cells, control
        log1p expression [n x G], [m x G]. The control is the real one, for predicted cells too.
    pseudocount
        Added to mean expression (not log) before the ratio of the fold change.
    """
    from scipy.stats import false_discovery_control, norm

    blocks = [slice(start, start + GENES_AT_ONCE) for start in range(0, cells.shape[1], GENES_AT_ONCE)]
    z = np.concatenate([_rank_sum_z(cells[:, block], control[:, block]) for block in blocks])
    p = np.minimum(2 * norm.sf(np.abs(z)), 1)
    mean, control_mean = (np.expm1(np.maximum(x, 0)).mean(0) + pseudocount for x in (cells, control))
    return Differential(z, p, false_discovery_control(p), np.log2(mean / control_mean))


def _rank_sum_z(cells: NDArray, control: NDArray) -> NDArray:
    """The Mann-Whitney U as a z score, corrected for ties and continuity; 0 where all values are equal."""
    from scipy.stats import rankdata

    n, m = len(cells), len(control)
    ranks = rankdata(np.concatenate([cells, control]), axis=0)
    above = ranks[:n].sum(0) - n * (n + m + 1) / 2  # U - nm/2
    error = np.sqrt(n * m / (n + m) * ranks.var(0, ddof=1))
    toward_zero = np.sign(above) * np.maximum(np.abs(above) - 0.5, 0)
    return np.divide(toward_zero, error, out=np.zeros_like(error), where=error > 0)


def de_jaccard(predicted_de: Differential, real_de: Differential) -> float:
    """Genes called in both over genes called in either; 1 when neither calls any."""
    predicted, real = predicted_de.called(), real_de.called()
    either = (predicted | real).sum()
    return float((predicted & real).sum() / either) if either else 1.0


def des(predicted_de: Differential, real_de: Differential) -> float:
    """Share of the real calls among as many of the strongest predicted calls (Virtual Cell Challenge); nan without real calls.

    Strongest means largest absolute log fold change, so that calling everything gains nothing.
    """
    predicted, real = predicted_de.called(), real_de.called()
    if not real.any():
        return float("nan")
    strength = np.where(predicted, np.abs(predicted_de.lfc), -np.inf)
    strongest = np.argsort(-strength, kind="stable")[: real.sum()]
    return float((predicted & real)[strongest].sum() / real.sum())


def de_direction(predicted_de: Differential, real_de: Differential) -> float:
    """Share of the really called genes whose fold change has the right sign."""
    real = _enough_calls(real_de)
    return float("nan") if real is None else float((np.sign(predicted_de.lfc) == np.sign(real_de.lfc))[real].mean())


def de_lfc_nmae(predicted_de: Differential, real_de: Differential) -> float:
    """Absolute error of the log fold changes of the really called genes, over their size: 1 for no effect, 0 is best."""
    real = _enough_calls(real_de)
    if real is None:
        return float("nan")
    return float(np.abs(predicted_de.lfc - real_de.lfc)[real].sum() / np.abs(real_de.lfc)[real].sum())


def de_auprc(predicted_de: Differential, real_de: Differential) -> float:
    """Average precision of finding the really called genes by predicted p value (by ``|z|``, which does not underflow)."""
    from sklearn.metrics import average_precision_score

    real = _enough_calls(real_de)
    return float("nan") if real is None else float(average_precision_score(real, np.abs(predicted_de.z)))


def _enough_calls(real_de: Differential) -> NDArray[np.bool_] | None:
    called = real_de.called()
    return called if called.sum() >= FEWEST_GENES else None
