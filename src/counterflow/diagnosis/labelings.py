"""Whose labelling it is: the habits of other tools, told by the columns and labels they leave in a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """What a labelling is told by."""

    columns: frozenset[str]  # of obs
    key: str
    control: str
    labels: Collection[str]

    def holds(self, *columns: str) -> bool:
        """Whether all these columns are there."""
        return set(columns) <= self.columns


LABELINGS: dict[str, Callable[[Labels], bool]] = {
    "GEARS": lambda f: f.control == "ctrl" and any(label.endswith("+ctrl") or label.startswith("ctrl+") for label in f.labels),
    "CPA": lambda f: f.holds("control", "dose_val") or f.holds("cov_drug_dose_name") or f.holds("cov_cond_dose_name"),
    "PerturBench": lambda f: f.key == "condition" and f.control == "control" and f.holds("perturbation_type"),
    "scPerturb": lambda f: f.key == "perturbation" and f.control == "control" and (f.holds("nperts") or f.holds("percent_mito")),
    "State / Virtual Cell Challenge": lambda f: f.control == "non-targeting" and (f.key in ("target_gene", "gene") or f.holds("gem_group")),
    "State (Tahoe)": lambda f: f.key == "drugname_drugconc",
    "pertpy": lambda f: (f.control == "NT" and f.holds("gene_target")) or (f.key == "label" and f.control == "ctrl"),
}
"""Tool -> whether a file looks like its own; the first that fits is named."""


def labeling_of(columns: Collection[str], key: str, control: str, labels: Collection[str]) -> str:
    """The tool whose habits a file follows, or ``plain``."""
    facts = Labels(frozenset(map(str, columns)), key, control, labels)
    return next((name for name, fits in LABELINGS.items() if fits(facts)), "plain")
