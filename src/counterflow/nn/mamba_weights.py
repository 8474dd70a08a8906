"""Weights of trained Mamba mixers, both ways.

Hugging Face transformers (`Mamba2Mixer`, `MambaMixer`) and mambapy (`MambaBlock`) keep the layout of the papers' code, and so do we; only
one name differs. What can go wrong is a file of something else, so every name is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from counterflow.errors import CheckpointError, near

_COMMON = {"in_proj": "in_proj", "conv": "conv1d", "A_log": "A_log", "D": "D", "out_proj": "out_proj"}
THEIRS = {  # kind of mixer -> our part -> its name in transformers and mambapy
    "mamba2": _COMMON | {"dt_bias": "dt_bias", "norm": "norm"},
    "mamba": _COMMON | {"x_proj": "x_proj", "dt_proj": "dt_proj"},
}
OURS = {kind: {theirs: ours for ours, theirs in names.items()} for kind, names in THEIRS.items()}


def from_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mamba2Mixer` or `MambaMixer` of ours, from that of one mixer of transformers or mambapy.

    Raises
    ------
    CheckpointError
        If the names are not those of one Mamba mixer.
    """
    return _renamed(weights, OURS)


def to_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the state dict of one of our mixers under the names of transformers and mambapy.

    Raises
    ------
    CheckpointError
        If the names are not those of one of our Mamba mixers.
    """
    return _renamed(weights, THEIRS)


def _renamed(weights: Mapping[str, Tensor], tables: Mapping[str, Mapping[str, str]]) -> dict[str, Tensor]:
    """The same tensors, the first part of every name looked up in the table of the kind of mixer that these weights are of."""
    split = {name: name.partition(".") for name in weights}
    parts = {part for part, _, _ in split.values()}
    kind = "mamba" if "x_proj" in parts else "mamba2"
    names = tables[kind]
    for part in sorted(parts - set(names)):
        raise CheckpointError(f"{part!r} is no part of a {kind} mixer: {near(part, names)} Give the weights of one, without a prefix.")
    for part in sorted(set(names) - parts):
        found = ", ".join(sorted(parts)) or "nothing"
        raise CheckpointError(f"these are not the weights of a {kind} mixer: {part!r} is missing; there is {found}")
    return {names[part] + dot + rest: weights[name] for name, (part, dot, rest) in split.items()}
