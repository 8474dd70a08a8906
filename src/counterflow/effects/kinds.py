"""Kinds of generalisation: what a prediction has to do beyond what was measured. Trust and intervals are learnt for each."""

from __future__ import annotations

from counterflow.types import ConditionSpec

KINDS = ("seen", "combination", "part", "level", "feature", "context", "unknown")
"""seen: measured. combination: its parts were measured alone. part: some only inside other combinations. level: another dose or time.

feature: not measured, but has features. context: measured, but not in this context. unknown: nothing is known but the mean effect.
"""


def kind_of(spec: ConditionSpec, measured: frozenset[ConditionSpec]) -> str:
    """The kind of generalisation that predicting `spec` needs, from conditions measured in training (contexts apart)."""
    if not spec.parts or spec in measured:
        return "seen"
    alone = {part for other in measured if len(other.parts) == 1 for part in other.parts}
    inside = {part for other in measured for part in other.parts}
    if set(spec.parts) <= alone:
        return "combination" if len(spec.parts) > 1 else "level"
    return "part" if set(spec.parts) <= inside else "feature"
