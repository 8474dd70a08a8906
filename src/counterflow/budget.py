"""What every model of a comparison may spend, so that none wins by being larger or by training longer."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from counterflow import backbones
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    from counterflow.model import CounterFlow

DEFAULT_STEPS = 200
WIDTHS = range(8, 4097, 8)


@dataclass(frozen=True)
class Budget:
    """What every model may spend: optimiser steps, or processor seconds of training; and how many parameters it has."""

    steps: int | None = None
    seconds: float | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.seconds is not None:
            raise ConfigError("give budget_steps or budget_seconds, not both: models are compared under one budget")
        if self.steps is None and self.seconds is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"budget_{name}={value:g}: the budget must be positive")

    def __str__(self) -> str:
        length = f"{self.steps} optimiser steps" if self.steps is not None else f"{self.seconds:g} processor seconds of training"
        return length + (f", backbones as near as their width allows to {self.parameters:,} parameters" if self.parameters else "")


def width_for(parameters: int, model: CounterFlow) -> int:
    """The width, in steps of 8, that brings the backbone of `model` closest to this number of parameters.

    Raises
    ------
    ConfigError
        If the backbone takes no ``width``.
    """
    name, conditioning = model.config["backbone"], model.config["conditioning"]
    given = {key: value for key, value in model.grouping.arguments(model.config).items() if key != "width"}
    if "width" not in inspect.signature(backbones.resolve(name)).parameters:
        raise ConfigError(f"the backbone {name!r} takes no width, so nobody can set its number of parameters: leave that budget out")
    found: dict[int, int] = {}
    for width in WIDTHS:
        try:
            with torch.device("meta"):
                network = backbones.build(
                    name, model.space.state_shape, model.module.encoder.width, conditioning=conditioning, width=width, **given
                )
        except ConfigError:  # not a multiple of its heads
            continue
        found[width] = sum(p.numel() for p in network.parameters())
        if found[width] >= parameters:
            break
    return min(found, key=lambda width: abs(found[width] - parameters))
