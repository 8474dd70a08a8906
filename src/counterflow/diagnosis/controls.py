"""Which column says what was done, which of its labels are controls, and what joins combinations."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pandas as pd

from counterflow.diagnosis.columns import level_counts

CONTROL_NAMES = (
    "control", "ctrl", "controls", "nontargeting", "nt", "ntc", "negctrl", "negativecontrol", "dmso", "vehicle", "unstimulated", "unstim",
    "untreated", "mock", "wt", "wildtype", "neg", "negative", "safe", "safetargeting", "scramble", "scrambled", "none", "pbs", "intergenic",
    "aavs", "rest", "resting", "baseline", "egfp", "gfp", "luciferase", "nontarget", "nontargetingcontrol", "negativectrl", "negcontrol",
    "unperturbed", "nonperturbed", "nontreated", "nostimulation", "nostim", "ctl", "cntrl", "ntg", "dmsotf", "dmsotfum", "emptyvector",
    "uninfected", "sham", "medium", "media", "solvent",
)  # fmt: skip
"""Control labels of published screens, most usual first; compared without case, punctuation and digits."""

_PERTURBED = ("perturbed", "treated", "targeting", "targeted", "knockout", "ko", "true", "yes")
"""A column of control and one of these says whether, not what."""
_SAYS_CONTROL = ("control", "is_control", "ctrl", "is_ctrl")  # columns of 0 and 1
_DELIMITERS = ("+", "_", "|", ";", ",", "-", " & ", "&")


def control_labels(counts: dict[str, int]) -> dict[str, int]:
    """Labels that are usually controls, the most usual name first, then by cells."""
    ranked = []
    for label, n in counts.items():
        word = re.sub(r"[^a-z]+", "", label.lower())
        doubled = word[: len(word) // 2] if word[: len(word) // 2] * 2 == word else word  # "ctrl+ctrl", "NT_NT"
        if doubled in CONTROL_NAMES:
            ranked.append((CONTROL_NAMES.index(doubled), -n, label))
    return {label: -n for _, n, label in sorted(ranked)}


def perturbation_column(obs: pd.DataFrame, usual: Sequence[str]) -> tuple[str | None, dict[str, int]]:
    """The perturbation column and its candidate controls: the first usual name with a control in it, else any column with one.

    A column that only says whether a cell was perturbed gives way to one that says how.
    """
    others = [str(column) for column in obs.columns if column not in usual and 2 <= obs[column].nunique() <= max(2, len(obs) // 2)]
    coarse: tuple[str, dict[str, int]] | None = None
    for column in [*usual, *(name for name in others if not pd.api.types.is_numeric_dtype(obs[name]))]:
        counts = level_counts(obs[column])
        controls = control_labels(counts) or _marked(obs, column)
        if not controls:
            continue
        rest = [label for label in counts if label not in controls]
        if len(rest) == 1 and re.sub(r"[^a-z]+", "", rest[0].lower()) in _PERTURBED:
            coarse = coarse or (column, controls)
            continue
        return column, controls
    return coarse or ((usual[0] if usual else None), {})


def _marked(obs: pd.DataFrame, column: str) -> dict[str, int]:
    """The label of the cells that another column marks as controls, if all of these have one label and no other cell has it."""
    for name in obs.columns:
        if str(name).lower() not in _SAYS_CONTROL or name == column:
            continue
        marked = obs[name].astype(str).isin(("1", "1.0", "True", "true"))
        labels = obs[column].astype(str)
        here = set(labels[marked])
        if marked.any() and not marked.all() and len(here) == 1 and not here & set(labels[~marked]):
            return {here.pop(): int(marked.sum())}
    return {}


def delimiter_of(labels: Sequence[str], control: str, genes: Collection[str] = ()) -> str:
    """What joins the parts of combinations: the character at which most labels fall into parts that are labels (or genes) themselves."""
    known = set(labels) | {control}
    score = {}
    for delimiter in _DELIMITERS:
        joined = [label for label in labels if delimiter in label and label != control]
        found = [
            [_is_known(part, known, delimiter, control) or part.strip() in genes for part in label.split(delimiter)] for label in joined
        ]
        score[delimiter] = (sum(map(all, found)), sum(map(sum, found)))
    best = max(_DELIMITERS, key=lambda delimiter: score[delimiter])
    return best if score[best][0] > 0 else "+"


def _is_known(part: str, known: set[str], delimiter: str, control: str) -> bool:
    """A part is known alone, or beside the control as in "A+ctrl"."""
    part = part.strip()
    return bool(part) and any(name in known for name in (part, f"{part}{delimiter}{control}", f"{control}{delimiter}{part}"))
