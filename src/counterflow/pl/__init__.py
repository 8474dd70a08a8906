"""Plots in scanpy's manners: each takes `ax`, `show` and `save`, and returns matplotlib Axes."""

from counterflow.pl.cells import embedding, top_genes
from counterflow.pl.effects import effect, interactions
from counterflow.pl.growth import scaling
from counterflow.pl.paths import trajectories
from counterflow.pl.tables import conditions, coverage, learning_curve, scores

__all__ = [
    "conditions",
    "coverage",
    "effect",
    "embedding",
    "interactions",
    "learning_curve",
    "scaling",
    "scores",
    "top_genes",
    "trajectories",
]
