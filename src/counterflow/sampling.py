"""How a prediction is made: solver and steps, guidance, decoder, and where a cell starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from counterflow.errors import ConfigError, near
from counterflow.flow.choose import choose
from counterflow.flow.solvers import SOLVERS, euler
from counterflow.flow.stochastic import sde
from counterflow.types import Solver

DECODERS = ("calibrated", "transport", "sample", "round")
"""How expected counts become counts.

transport: the counts of the control cell are thinned and added to, so that what the state does not explain stays. calibrated: the
same, with the mean of every gene set to that of the rule (`counterflow.recentring`). sample: drawn anew from a negative binomial.
round: the nearest integer, for states that hold counting noise already.
"""
SOLVER = "midpoint"
STEPS = {"control": 5, "noise": 10}
"""Steps that are enough: an error of 2 to 3 % of what the flow moves, and no better cells with more (`benchmarks/solvers.py`)."""
STOCHASTIC, JUMP = "sde", "jump"
PRECISIONS = ("32-true", "bf16-mixed")
MODES = ("abduct", "sample")
NO_DRAWS: Iterator[Tensor] = iter(())


@dataclass(frozen=True)
class Sampling:
    """How a prediction is made. ``None`` takes the default: midpoint, in as many steps as the source needs (`STEPS`).

    Networks that learnt mean velocities take one step, ``jump``: see `suited`.
    """

    solver: str | Solver | None = None
    n_steps: int | None = None
    guidance: float = 1.0
    guidance_kind: Literal["contrast", "classifier_free"] = "contrast"
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0
    decoder: str | None = None
    precision: str = "32-true"
    combine: Literal["encoder", "algebra"] = "encoder"
    mode: Literal["abduct", "sample"] | None = None

    def suited(self, objective: str) -> Sampling:
        """For a network of this objective: what it can do, and the defaults that suit it."""
        if objective != "meanflow":
            if self.solver == JUMP:
                raise ConfigError("solver='jump' follows mean velocities: fit with objective='meanflow'")
            return self
        chosen = replace(self, solver=self.solver or JUMP)
        return replace(chosen, n_steps=1) if chosen.solver == JUMP and self.n_steps is None else chosen

    def inverts(self, source: str, coupling: object) -> bool:
        """Whether a given cell starts at the noise that it came from itself (``abduct``), not at noise drawn for it (``sample``).

        Neither where control cells flow: there a cell starts at itself.
        """
        if self.mode is None:
            return source == "noise" and coupling != "genot" and self.solver not in (STOCHASTIC, JUMP)
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} is unknown: {near(self.mode, MODES)}")
        if source != "noise":
            raise ConfigError(f"mode={self.mode!r} says at which noise a cell starts: this model starts at the control cells themselves")
        if self.mode == "abduct" and coupling == "genot":
            raise ConfigError("mode='abduct' finds the noise behind a control cell; with coupling='genot' the cell is a condition instead")
        if self.mode == "abduct" and self.solver in (STOCHASTIC, JUMP):
            raise ConfigError(f"mode='abduct' goes back along the path of the cell, which solver={self.solver!r} cannot: use 'midpoint'")
        return self.mode == "abduct"

    def resolve(self, source: str, draws: Iterator[Tensor] = NO_DRAWS) -> tuple[Solver, Tensor]:
        """The solver and its time grid. `draws`: the noise that a stochastic one adds."""
        n_steps = self.steps(source)
        if n_steps < 1:
            raise ConfigError(f"n_steps={n_steps}: at least one step is needed")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must not be negative")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision={self.precision!r} is unknown: {near(self.precision, PRECISIONS)}")
        if self.solver == STOCHASTIC and source != "noise":
            raise ConfigError("solver='sde' needs the score, which only a flow from noise has: fit with source='noise'")
        solver = sde(draws) if self.solver == STOCHASTIC else choose(self.solver or SOLVER, SOLVERS | {JUMP: euler}, "solver")
        return solver, torch.linspace(0, 1, n_steps + 1)

    def steps(self, source: str) -> int:
        """Given, or the default: twice as many for euler, which evaluates the network once a step, and for the sde."""
        return (2 if self.solver in ("euler", STOCHASTIC) else 1) * STEPS[source] if self.n_steps is None else self.n_steps

    @property
    def effect_scale(self) -> float:
        """By what contrast guidance multiplies an effect that is known as such: the rule's, whose control effect is zero."""
        low, high = self.guidance_interval or (0.0, 1.0)
        return 1.0 + (self.guidance - 1.0) * (high - low) if self.guidance_kind == "contrast" else 1.0

    def decode_by(self, default: str, anchored: bool) -> str:
        """The decoder, given that of the space and whether there is a rule; transport is calibrated where it can be."""
        chosen = self.decoder or ("calibrated" if default == "transport" and anchored else default)
        if chosen not in DECODERS:
            raise ConfigError(f"decoder={chosen!r} is unknown: {near(chosen, DECODERS)}")
        if chosen == "calibrated" and not anchored:
            raise ConfigError("decoder='calibrated' sets gene means to those of the rule, and this model has none (anchor='none')")
        return chosen

    def describe(self, source: str, coupling: object) -> dict[str, Any]:
        """JSON-able, for ``uns``."""
        values = asdict(self)
        values["solver"], values["n_steps"] = self.solver if isinstance(self.solver, str) else SOLVER, self.steps(source)
        values["mode"] = "control" if source == "control" else "abduct" if self.inverts(source, coupling) else "sample"
        values["guidance_interval"] = list(self.guidance_interval or (0.0, 1.0))
        return values
