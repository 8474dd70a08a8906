"""How far predicted cells are from real ones: pure functions of matrices, nothing of ours imported.

**One convention.** The positional parameters of every metric are inputs from this list, the prediction always before the
truth; keyword-only parameters are options. So one loop computes them all: `compute("pds_cosine", inputs)`::

    predicted_mean, real_mean       [G]      mean expression of one condition
    control_mean                    [G]      of the *real* matched controls, on both sides
    reference_mean                  [G]      mean over the training perturbations of their means
    abs_t                           [G]      |welch_t(real cells, control cells)|: which genes matter is decided by real data
    predicted, real                 [m x G], [n x G]   cells
    predicted_pcs, real_pcs         [m x d], [n x d]   the same cells in a PCA that saw neither them nor the source cells
    predicted_de, real_de           `Differential` of predicted and of real cells, each against the real controls
    predicted_effects, real_effects [P x G]  d = mean - control mean, one row per condition
    predicted_means, real_means     [P x G]

Expression is log1p of counts per 10,000, dense. On genetic screens the perturbed gene is left out before the call (for the
metrics over all conditions: `leave_out`). The result is one float, or one value per condition ([P]) for those that rank
conditions; **what cannot be computed is nan, never 0**. Distances between clouds are biased in the number of cells: compare
at equal n (`equal_size`).

Means and correlations do not see a cloud collapsed to its mean, ranks do not see the effect's scale, errors reward small
effects: read one of each family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple

from counterflow.evaluate.metrics.differential import (
    Differential,
    de_auprc,
    de_direction,
    de_jaccard,
    de_lfc_nmae,
    des,
    differential,
)
from counterflow.evaluate.metrics.distributions import (
    c2st_gene,
    c2st_pca,
    cover90,
    coverage,
    energy,
    equal_size,
    mmd,
    precision,
    recall,
    sinkhorn,
    std_log2ratio,
    w1_de50,
    w2,
    zero_frac_err,
)
from counterflow.evaluate.metrics.means import (
    cosine_delta,
    l2_top1000,
    mae,
    mse,
    pearson_delta,
    pearson_delta_pertref,
    pearson_delta_top20,
    r2_delta,
    r2_mean,
    rmse,
    top_genes,
    welch_t,
    wmse,
)
from counterflow.evaluate.metrics.ranks import centroid_acc, pds_cosine, pds_l1, pds_l2, rank_perturbench


class Metric(NamedTuple):
    """A metric and where its good end is: `"higher"`, `"lower"`, or the value to come close to."""

    function: Callable[..., Any]
    better: Literal["higher", "lower"] | float


METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(pearson_delta, "higher"),
    "pearson_delta_top20": Metric(pearson_delta_top20, "higher"),
    "pearson_delta_pertref": Metric(pearson_delta_pertref, "higher"),
    "cosine_delta": Metric(cosine_delta, "higher"),
    "r2_mean": Metric(r2_mean, "higher"),
    "r2_delta": Metric(r2_delta, "higher"),
    "mse": Metric(mse, "lower"),
    "mae": Metric(mae, "lower"),
    "rmse": Metric(rmse, "lower"),
    "l2_top1000": Metric(l2_top1000, "lower"),
    "wmse": Metric(wmse, "lower"),
    "pds_l1": Metric(pds_l1, "higher"),
    "pds_l2": Metric(pds_l2, "higher"),
    "pds_cosine": Metric(pds_cosine, "higher"),
    "centroid_acc": Metric(centroid_acc, "higher"),
    "rank_perturbench": Metric(rank_perturbench, "lower"),
    "energy": Metric(energy, "lower"),
    "mmd": Metric(mmd, "lower"),
    "w2": Metric(w2, "lower"),
    "sinkhorn": Metric(sinkhorn, "lower"),
    "c2st_pca": Metric(c2st_pca, "lower"),
    "c2st_gene": Metric(c2st_gene, "lower"),
    "std_log2ratio": Metric(std_log2ratio, 0.0),
    "w1_de50": Metric(w1_de50, "lower"),
    "precision": Metric(precision, "higher"),
    "recall": Metric(recall, "higher"),
    "coverage": Metric(coverage, "higher"),
    "cover90": Metric(cover90, 0.9),
    "zero_frac_err": Metric(zero_frac_err, "lower"),
    "de_jaccard": Metric(de_jaccard, "higher"),
    "des": Metric(des, "higher"),
    "de_direction": Metric(de_direction, "higher"),
    "de_lfc_nmae": Metric(de_lfc_nmae, "lower"),
    "de_auprc": Metric(de_auprc, "higher"),
}


def needs(name: str) -> tuple[str, ...]:
    """The names of the inputs that a metric takes."""
    parameters = signature(METRICS[name].function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY)


def compute(name: str, inputs: Mapping[str, Any], **options: Any) -> Any:
    """The metric of this name, on the inputs it needs out of all that there are."""
    return METRICS[name].function(*(inputs[need] for need in needs(name)), **options)


__all__ = [
    "METRICS",
    "Differential",
    "Metric",
    "compute",
    "differential",
    "equal_size",
    "needs",
    "top_genes",
    "welch_t",
    *METRICS,
]
