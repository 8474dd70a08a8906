"""Kinds of generalisation: what a prediction has to do beyond what was measured. Trust and intervals are learnt for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def named_kind(kind: str) -> str:
    """A kind of generalisation in words."""
    return {"seen": "measured conditions", "unknown": "an unmeasured perturbation", "feature": "one known by its features"}.get(
        kind, f"a new {kind}"
    )


def describe_trust(trust: Mapping[str, Sequence[float]], anchor: str) -> str:
    """How far the flow is trusted for the mean and for how cells differ, in words; learnt on left-out training conditions."""
    if anchor != "additive":
        return "no rule: the flow carries the whole effect"
    if not trust:
        return "too few conditions to learn how far the flow holds: means follow the rule"
    chosen_on = {
        kind: ("" if kind == "seen" else "left-out ") + ("condition" if n == 1 else "conditions") for kind, (_, _, n) in trust.items()
    }
    learnt = "; ".join(
        f"{named_kind(kind)}: mean {mean:.0%} flow, {spread:.0%} of its spread (chosen on {n} {chosen_on[kind]})"
        for kind, (mean, spread, n) in trust.items()
    )
    return f"0 % is the rule; {learnt}"
