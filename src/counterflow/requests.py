"""What was asked for, checked against what a model knows: conditions, matching controls, support labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from counterflow.calibration import KINDS, kind_of
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, read_specs, requested
from counterflow.errors import ConfigError, DataError, near
from counterflow.recentring import NONE, Trust
from counterflow.types import ConditionSpec

SUPPORT = ("seen", "components-seen", "features-only", "unseen-context", "unknown")
"""How far training carries a prediction."""


def requested_specs(
    conditions: str | Sequence[str] | pd.DataFrame | None, on_unknown: str, setup: Setup, vocabulary: Vocabulary
) -> tuple[list[ConditionSpec], pd.DataFrame]:
    """The conditions asked for, and the columns that choose their controls; an unknown perturbation is an error unless allowed."""
    if on_unknown not in ("error", "mean"):
        raise ConfigError(f"on_unknown={on_unknown!r} is unknown: use 'error' or 'mean'")
    if conditions is None:
        specs = sorted(spec for spec in vocabulary.conditions if spec.parts)
        return specs, pd.DataFrame(index=range(len(specs)))
    table = requested(conditions, setup)
    specs = read_specs(table, setup)
    missing = sorted({part for spec in specs for part in vocabulary.unknown(spec)})
    if missing and on_unknown == "error":
        hints = "; ".join(f"{name!r}: {near(name, sorted(vocabulary.seen))}" for name in missing[:3])
        raise DataError(
            f"{len(missing)} perturbations were neither seen in training nor have features ({hints}). Train with "
            "perturbation_features=<DataFrame> that has a row for them, or accept the mean effect with on_unknown='mean'"
        )
    chosen = table.drop(columns=[key for key in (setup.perturbation_key, setup.dose_key, setup.time_key) if key in table])
    return specs, chosen.astype(str)  # column by column: a row of an integer and a fraction would be two fractions


def check_n_cells(n_cells: int | None) -> None:
    """At least one cell per condition, or ``None``."""
    if n_cells is not None and n_cells < 1:
        raise ConfigError(f"n_cells={n_cells}: ask for at least one cell per condition")


def matching_rows(obs: pd.DataFrame, wanted: Mapping[str, object]) -> np.ndarray:
    """Positions of the controls with the wanted levels."""
    keep = np.ones(len(obs), dtype=bool)
    for key, level in wanted.items():
        keep &= (obs[key].astype(str) == str(level)).to_numpy()
        if not keep.any():
            raise DataError(f"no control cell has {key} = {level!r}: {near(level, sorted(obs[key].astype(str).unique()))}")
    return np.flatnonzero(keep)


def support_labels(spec: ConditionSpec, cells: Screen, vocabulary: Vocabulary) -> list[str]:
    """How far training carries the prediction of each cell."""
    label = vocabulary.support(spec)
    if spec.parts and label == "seen":  # in this very context, or only in others
        here = {context: (spec, context) in vocabulary.measured for context in cells.contexts}
        labels = ["seen" if here[cells.contexts[c]] else "components-seen" for c in cells.context]
    else:
        labels = [label] * len(cells.context)
    met = [cells.contexts[c] in vocabulary.perturbed_contexts for c in cells.context]
    for key, levels in vocabulary.perturbed_levels.items():
        met = [ok and level in levels for ok, level in zip(met, cells.covariates[key], strict=True)]
    return [label if ok or label == "unknown" else "unseen-context" for label, ok in zip(labels, met, strict=True)]


def trusted(spec: ConditionSpec, vocabulary: Vocabulary, learnt: Mapping[str, Trust]) -> dict[str, Trust]:
    """How far the flow is trusted beyond the rule, by support label; see `counterflow.calibration`."""
    seen = learnt.get("seen", NONE)
    default = dict.fromkeys(KINDS, NONE) | {"seen": seen, "context": seen, "level": seen}  # the same perturbation, elsewhere
    trust = {**default, **learnt}
    kind = "unknown" if vocabulary.unknown(spec) else kind_of(spec, vocabulary.conditions)
    elsewhere = ("unseen-context", "components-seen") if kind == "seen" else ("unseen-context",)  # measured, but not in this context
    return {label: trust["context" if label in elsewhere else kind] for label in SUPPORT}
