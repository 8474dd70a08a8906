"""What the columns of a screen are, by their names and their values."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

COLUMN_NAMES = {
    "perturbation": ("perturbation", "perturb", "condition", "gene", "target", "target_gene", "gene_target", "perturbation_target",
                     "guide_target", "assigned_perturbation", "guide", "guide_id", "sgrna", "grna", "guide_identity", "treatment", "drug",
                     "drugname_drugconc", "compound", "cytokine", "stimulation", "stim", "stimulus", "agent", "perturbation_name",
                     "product_name", "label"),
    "cell type": ("cell_type", "celltype", "cell_line", "cellline", "cell_label", "cell", "line", "tissue", "louvain", "leiden", "cluster"),
    "donor": ("donor", "donor_id", "patient", "individual", "subject", "replicate", "mouse"),
    "batch": ("batch", "batch_var", "gem_group", "lane", "sample", "plate", "channel", "library", "experiment", "orig_ident"),
    "dose": ("dose", "dose_val", "dose_value", "dosage", "concentration", "conc", "dose_um", "dose_nm"),
    "time": ("time", "timepoint", "time_h", "time_point", "hours", "hour", "time_after", "days"),
    "library size": ("n_counts_full", "n_counts", "total_counts", "umi_count", "ncount_rna", "ncounts", "n_umis", "library_size"),
    "split": ("split", "set", "subset", "fold", "train_test"),
}  # fmt: skip
"""Usual names of the columns, most usual first."""

SPLIT_LEVELS = {"train", "val", "test"}
_MAX_CONTEXT_LEVELS = 100


def candidates(obs: pd.DataFrame, role: str) -> list[str]:
    """Columns whose names and values fit a role, by how usual the name is."""
    return [column for column in named(obs, role) if _fits(obs[column], role)]


def named(obs: pd.DataFrame, role: str) -> list[str]:
    """Columns whose names fit a role, whatever they hold."""
    usual = COLUMN_NAMES[role]
    names = {str(column): re.sub(r"[\s.\-]+", "_", str(column)).lower() for column in obs.columns}
    return [column for _, column in sorted((usual.index(name), column) for column, name in names.items() if name in usual)]


def _fits(values: pd.Series, role: str) -> bool:
    """Whether the values can be what the name says."""
    if role == "dose":
        return all(amounts(level) is not None for level in values.unique())
    if role == "time":
        return numbers(values) is not None
    if role == "library size":
        found = numbers(values)
        return found is not None and len(found) > 0 and float(found.max()) > 10
    if role == "perturbation":
        return 2 <= values.nunique() <= max(2, len(values) // 2)
    if role == "split":
        return set(values.astype(str)) <= SPLIT_LEVELS and "train" in set(values.astype(str))
    return values.nunique() <= _MAX_CONTEXT_LEVELS


def numbers(values: pd.Series) -> np.ndarray | None:
    """The values as numbers >= 0, if they all are."""
    found = pd.to_numeric(values.astype(str), errors="coerce").to_numpy()
    return found if np.isfinite(found).all() and (found >= 0).all() else None


def amounts(dose: object) -> tuple[float, ...] | None:
    """The numbers of a dose such as 3, "3" or "1.0+0.5" (one for each part), if that is what it holds."""
    words = [str(dose)] if re.fullmatch(r"[\d.]+[eE][+-]?\d+", str(dose)) else re.split(r"[+_;|]", str(dose))
    found = pd.to_numeric(pd.Series(words), errors="coerce")
    return tuple(map(float, found)) if np.isfinite(found).all() and (found >= 0).all() else None


def level_counts(values: pd.Series) -> dict[str, int]:
    """Level -> cells, commonest first; cells without a value do not count."""
    return {str(name): int(n) for name, n in values.dropna().astype(str).value_counts().items()}
