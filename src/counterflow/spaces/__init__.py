"""Where the flow lives. `build(name, n_genes)` makes a space that `fit` then learns from training cells."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from counterflow.errors import ConfigError, near
from counterflow.spaces.base import StateSpace


def _raw() -> Callable[..., StateSpace]:
    from counterflow.spaces.expression import ExpressionSpace

    return ExpressionSpace


def _pca() -> Callable[..., StateSpace]:
    from counterflow.spaces.pca import PCASpace

    return PCASpace


def _latent() -> Callable[..., StateSpace]:
    from counterflow.spaces.latent import LatentSpace

    return LatentSpace


SPACES = {"raw": _raw, "pca": _pca, "latent": _latent}


def build(space: str, n_genes: int, **space_kwargs: Any) -> StateSpace:
    """An unfitted space by name."""
    if space not in SPACES:
        raise ConfigError(f"space={space!r} is unknown: {near(space, SPACES)}")
    factory = SPACES[space]()
    accepted = [name for name in inspect.signature(factory).parameters if name != "n_genes"]
    for name in space_kwargs:
        if name not in accepted:
            raise ConfigError(f"space {space!r} has no option {name!r}: {near(name, accepted)}")
    return factory(n_genes, **space_kwargs)
