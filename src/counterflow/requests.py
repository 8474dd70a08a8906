"""What was asked for, checked against what a model knows: conditions, matching controls, support labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.schema import Setup, listed
from counterflow.data.screen import Screen, read_specs, requested
from counterflow.data.source import total
from counterflow.effects.kinds import KINDS, kind_of
from counterflow.errors import ConfigError, DataError, near, warn
from counterflow.recentring import NONE, Trust
from counterflow.reference import Reference
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
    chosen = chosen.astype(str)  # column by column: a row of an integer and a fraction would be two fractions
    asked: dict[tuple[object, ...], int] = {}
    for i, spec in enumerate(specs):
        asked.setdefault((spec, *chosen.iloc[i]), i)
    rows = list(asked.values())
    if len(rows) < len(specs):
        text = f"{len(specs) - len(rows)} of the {len(specs)} conditions were asked for before ('B+A' is 'A+B'): each is answered once"
        warn(text, above=2)
    return [specs[i] for i in rows], chosen.iloc[rows].reset_index(drop=True)


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


_SHARE, _DEPTH = 1.25, 3.0  # factors beyond which given cells are not counted as the training cells were


def check_library(cells: Screen, extra_genes: Sequence[str], reference: Reference, setup: Setup) -> None:
    """Warn where cells to start from have library sizes of another kind than the training cells: over other genes, or far from them."""
    logs = np.array([mean for mean, _ in reference.log_library.values()])
    given, usual = float(np.exp(np.log(np.maximum(cells.library, 1.0)).mean())), float(np.exp(logs.mean()))
    held = float(reference.library.sum())
    share = total(cells.counts) / max(float(cells.library.sum()), 1.0)
    trained = float(reference.counts.sum()) / held if held else share
    if setup.library_size_key is None and not 1 / _SHARE < share / max(trained, 1e-9) < _SHARE:
        warn(
            f"the model's genes hold {share:.0%} of the counts of these cells, and {trained:.0%} of those of the training cells: library "
            "sizes are sums over the genes of a file, so effects come out on another scale. Give cells with the training file's genes, "
            "or fit with library_size_key",
            above=3,
        )
    elif not 1 / _DEPTH < given / usual < _DEPTH:
        warn(f"these cells have {given:,.0f} counts on average, the training cells {usual:,.0f}: far from what the model knows", above=3)
    elif len(extra_genes) and trained > 0.999 and held:
        warn(f"{len(extra_genes)} genes of these cells are not the model's (first: {listed(extra_genes)}): they are left out", above=3)


def gene_report(genes: Sequence[str], given: Sequence[str]) -> dict[str, int]:
    """How many of the model's genes were found by name among those of the given cells, and how many were not needed, or not there."""
    used = len(set(genes) & set(given))
    return {"used": used, "extra": len(given) - used, "missing": len(genes) - used}


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


def kinds_by_label(spec: ConditionSpec, vocabulary: Vocabulary) -> dict[str, str]:
    """The kind of generalisation that predicting `spec` takes, by the support label of a cell."""
    kind = "unknown" if vocabulary.unknown(spec) else kind_of(spec, vocabulary.conditions)
    elsewhere = ("unseen-context", "components-seen") if kind == "seen" else ("unseen-context",)  # measured, but not in this context
    return {label: "context" if label in elsewhere else kind for label in SUPPORT}


def trusted(spec: ConditionSpec, vocabulary: Vocabulary, learnt: Mapping[str, Trust]) -> dict[str, Trust]:
    """How far the flow is trusted beyond the rule, by support label; see `counterflow.calibration`."""
    seen = learnt.get("seen", NONE)
    default = dict.fromkeys(KINDS, NONE) | {"seen": seen, "context": seen, "level": seen}  # the same perturbation, elsewhere
    trust = {**default, **learnt}
    return {label: trust[kind] for label, kind in kinds_by_label(spec, vocabulary).items()}
