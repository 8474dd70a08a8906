"""A model in a notebook: what it is, what it was trained on, how far its flow is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from counterflow.effects.kinds import describe_trust
from counterflow.effects.on_target import in_words
from counterflow.shown import card, facts, listed

if TYPE_CHECKING:
    from counterflow.model import CounterFlow


def portrait(model: CounterFlow) -> str:
    """The model as HTML."""
    config = model.config
    name = config["backbone"] if isinstance(config["backbone"], str) else type(config["backbone"]).__name__
    title = f"CounterFlow: {name} on {config['space']}"
    if not hasattr(model, "vocabulary"):
        return card(f"{title}, without data")
    n_seen = len(model.vocabulary.seen)
    known: dict[str, object] = {
        "genes": f"{len(model.genes):,}",
        "perturbations": f"{n_seen:,} seen, {len(model.vocabulary.entities) - n_seen:,} more by features",
        "conditions": f"{sum(bool(spec.parts) for spec in model.vocabulary.conditions):,} measured",
        "cells": _cells(model.trained_on),
        "flow": ", ".join(f"{option} {config[option]}" for option in ("source", "coupling", "conditioning", "anchor", "objective")),
    }
    if not model.is_trained:
        return card(f"{title}, not trained", facts(known), listed("next", ["model.train()"]))
    trust = {kind: (one.mean, one.spread, one.n) for kind, one in model.trust.items()}
    known |= {
        "trained": f"{model.n_steps_trained:,} steps",
        "trust in the flow": describe_trust(trust, config["anchor"]),
        "on target": in_words(model.on_target()),
    }
    return card(title, facts(known))


def _cells(trained_on: Mapping[str, int]) -> str:
    held_out = trained_on.get("held_out_cells", 0)
    return f"{trained_on['cells']:,} to train on ({trained_on['control_cells']:,} controls), {held_out:,} held out"
