"""Saved models of older schemas, read as if they were of the present one. `tests/golden` has some of each schema."""

from __future__ import annotations

from typing import Any

from counterflow.errors import CheckpointError

ADDED = {4: ("intervals",)}
"""Schema -> entries of ``model.json`` that it was the first to have."""


def brought_up_to_date(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with what its schema lacks; the files beside it stay as they are."""
    if manifest["schema"] < 4:  # no intervals were learnt, and nobody noted on how many conditions trust was
        try:
            trust = {kind: [mean, spread, 0] for kind, (mean, spread) in manifest["trust"].items()}
        except (TypeError, ValueError):
            raise CheckpointError("the trust of this model is not two numbers for each kind: the file was changed") from None
        training = {**manifest["training"], "on_target": []}
        manifest = {**manifest, "schema": 4, "trust": trust, "training": training, "intervals": None}
    return manifest
