"""Simple predictors with the models' own interface: `train` on a declared AnnData, `predict` -> AnnData of cells.

Every table shows them. In print they have beaten deep models on means, and they cost nothing. Each mean rule comes twice: its
cells are control cells moved in log expression, or (``+ct``) by count transport, which is the harder row to beat.

=====================================  ================================================================================
always                                 `control`, `mean`, `additive`
combinations                           `additive_scaled`, `matching_mean`, `ridge`, `resample_nearest`
a held-out context                     `nearest_context`, `similar_contexts`, `quantile_map`, `qmap_top2`, `resample_nearest`
an unseen gene that is measured        `bilinear`, `knn`, `ridge`
a dose or time between others          `interpolate`
=====================================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from counterflow.data.schema import setup_of
from counterflow.data.screen import read_screen
from counterflow.evaluate.baselines.cells import log_expression, move_cells, transport_cells
from counterflow.evaluate.baselines.contexts import NearestContext, QuantileMap, ResampleNearest, SimilarContexts, WeightedQuantileMap
from counterflow.evaluate.baselines.embeddings import Bilinear, NearestPerturbations, Ridge
from counterflow.evaluate.baselines.levels import Interpolate
from counterflow.evaluate.baselines.rule import Rule, Situation
from counterflow.evaluate.baselines.sums import Additive, AdditiveScaled, Control, MatchingMean, PerturbationMean

if TYPE_CHECKING:
    from anndata import AnnData

MEAN_RULES: tuple[type[Rule], ...] = (
    PerturbationMean, Additive, AdditiveScaled, MatchingMean, NearestContext, SimilarContexts, Ridge, Bilinear, NearestPerturbations,
)  # fmt: skip
CELL_RULES: tuple[type[Rule], ...] = (Control, QuantileMap, WeightedQuantileMap, ResampleNearest, Interpolate)

BASELINES: dict[str, Callable[[], Rule]] = {
    **{rule.name: rule for rule in (*CELL_RULES[:1], *MEAN_RULES)},
    **{f"{rule.name}+ct": partial(rule, decoder="counts") for rule in MEAN_RULES},
    **{rule.name: rule for rule in CELL_RULES[1:]},
}


def applicable(adata: AnnData, subset: str = "test") -> list[str]:
    """Names of the baselines that have something to say about the held-out conditions of a declared AnnData."""
    situation = Situation.of(read_screen(adata, setup_of(adata)), subset)
    good = {rule.name for rule in (*MEAN_RULES, *CELL_RULES) if rule.applies(situation)}
    return [name for name in BASELINES if name.removesuffix("+ct") in good]


__all__ = ["BASELINES", "Rule", "Situation", "applicable", "log_expression", "move_cells", "transport_cells"]
