"""The network of a model put together from its options: encoder, backbone, flow."""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from counterflow import backbones
from counterflow.conditions.courses import CourseEncoder, Courses
from counterflow.conditions.encoder import ConditionEncoder
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.errors import ConfigError, near
from counterflow.grouping import Grouping
from counterflow.module import FlowModule

ANCHORS = ("additive", "none")


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a model with every ``None`` replaced by what suits the source and the space; see `CounterFlow`."""
    config = dict(given)
    noisy = config["space"] == "raw"
    config["source"] = config["source"] or ("noise" if noisy else "control")
    from_control = config["source"] == "control"
    config["coupling"] = config["coupling"] or ("ot" if from_control else "independent")
    config["prediction"] = config["prediction"] or ("x" if noisy and not from_control else "v")
    on_courses = backbones.reads_courses(config["backbone"])
    if on_courses and config["anchor"] == "additive":
        raise ConfigError("anchor='additive' takes off what a network that reads courses is to learn from: leave it out, or use 'none'")
    config["anchor"] = config["anchor"] or ("additive" if from_control and not on_courses else "none")
    config["time"] = config["time"] or ("uniform" if from_control else "logit_normal")
    for name in ("backbone_kwargs", "space_kwargs", "encoder_kwargs"):
        config[name] = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in (config[name] or {}).items()}
    if config["anchor"] not in ANCHORS:
        raise ConfigError(f"anchor={config['anchor']!r} is unknown: {near(config['anchor'], ANCHORS)}")
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed={config['seed']}: must be between 0 and 2^32 - 1")
    return config


def assemble(
    config: dict[str, Any],
    features: np.ndarray,
    vocabulary: Vocabulary,
    state_shape: tuple[int, ...],
    grouping: Grouping,
    seen: frozenset[str],
    courses: Courses | None = None,
) -> FlowModule:
    """An untrained network.

    Parameters
    ----------
    features
        One row per entity of the vocabulary; NaN where it has none.
    grouping
        Which state features sit side by side, or share a token.
    seen
        Entities with an identity of their own.
    courses
        How effects grew over time or dose, for a backbone that reads it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        trained = torch.tensor([name in seen for name in vocabulary.entities])
        levels = tuple(len(levels) for levels in vocabulary.covariates.values())
        known = torch.from_numpy(features)
        if courses is None:
            encoder = ConditionEncoder(known, trained, levels, **_accepted(config["encoder_kwargs"], ConditionEncoder))
        else:
            options = _accepted(config["encoder_kwargs"], ConditionEncoder, CourseEncoder, besides=("courses",))
            encoder = CourseEncoder(known, trained, levels, courses=courses, **options)
        backbone = config["backbone"]
        backbone = backbones.build(
            copy.deepcopy(backbone) if isinstance(backbone, nn.Module) else backbone,  # every fit starts from the weights as they came
            state_shape,
            encoder.width,
            conditioning=config["conditioning"],
            feature_order=grouping.order,
            **grouping.arguments(config),
        )
        chosen: dict[str, Any] = {name: config[name] for name in ("source", "coupling", "prediction", "time", "condition_dropout")}
        chosen |= {"mmd_weight": config.get("mmd_weight", 0.0), "objective": objective_of(config), "time_scale": config.get("time_scale")}
        return FlowModule(backbone, encoder, state_shape, **chosen).eval()


def objective_of(config: dict[str, Any]) -> Any:
    """What the network learns; models saved before there was a choice learnt velocities."""
    return config.get("objective", "flow")


def _accepted(kwargs: dict[str, Any], *encoders: type[ConditionEncoder], besides: tuple[str, ...] = ()) -> dict[str, Any]:
    parameters = [p for encoder in encoders for p in inspect.signature(encoder).parameters.values()]
    names = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in besides]
    for name in kwargs:
        if name not in names:
            raise ConfigError(f"{encoders[-1].__name__} has no option {name!r}: {near(name, names)}")
    return kwargs
