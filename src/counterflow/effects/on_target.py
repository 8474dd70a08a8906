"""Does the perturbed gene itself change? The simplest check of a screen: guides that do nothing, labels that were mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from counterflow.effects.kriging import MeasuredEffects

SURE = 3.0  # standard errors


@dataclass(frozen=True)
class OnTarget:
    """The measured effect of a perturbation on the gene it is named after."""

    perturbation: str
    effect: float  # on log expression, mean over contexts
    error: float  # its standard error

    @property
    def direction(self) -> int:
        """-1 falls, 1 rises, 0 cannot be told."""
        return int(np.sign(self.effect)) if abs(self.effect) > SURE * self.error else 0


def on_target(measured: MeasuredEffects, genes: Sequence[str]) -> tuple[OnTarget, ...]:
    """Every perturbation that was measured alone and whose gene is measured; its largest dose and latest time."""
    column = {gene: i for i, gene in enumerate(genes)}
    found = {}
    for s, spec in sorted(enumerate(measured.specs), key=lambda item: (item[1].doses, item[1].time)):
        if len(spec.parts) == 1 and spec.parts[0] in column:
            units, gene = measured.spec_of == s, column[spec.parts[0]]
            error = np.sqrt(measured.noise[units, gene].astype(np.float64).mean() / units.sum())
            found[spec.parts[0]] = OnTarget(spec.parts[0], float(measured.effect[units, gene].mean()), float(error))
    return tuple(found[name] for name in sorted(found))


def in_words(found: Sequence[OnTarget]) -> str:
    """``10 of 11 perturbed genes fall, 0 rise; cannot be told: UBR5 (+0.02)``."""
    if not found:
        return "no perturbation is named after a measured gene"
    falls, rises = (sum(one.direction == way for one in found) for way in (-1, 1))
    said = sorted([(falls, "fall"), (rises, "rise")], reverse=True)
    text = f"{said[0][0]} of {len(found)} perturbed genes {said[0][1]}, {said[1][0]} {said[1][1]}"
    unclear = [one for one in found if not one.direction]
    return text + ("; cannot be told: " + ", ".join(f"{one.perturbation} ({one.effect:+.2f})" for one in unclear) if unclear else "")
