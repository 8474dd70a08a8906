"""Named sizes, and the shape of a state that is a plain vector."""

from __future__ import annotations

from counterflow.errors import ConfigError, near


def pick_size(sizes: dict[str, dict[str, int]], size: str, **overrides: int | None) -> dict[str, int]:
    """The hyper-parameters of a named size, with those overridden that are given (not None).

    Raises
    ------
    ConfigError
        If there is no such size, or a number is below 1.
    """
    if size not in sizes:
        raise ConfigError(f"no size {size!r}: {near(size, sizes)}")
    chosen = sizes[size] | {name: value for name, value in overrides.items() if value is not None}
    for name, value in chosen.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    return chosen


def vector_length(state_shape: tuple[int, ...]) -> int:
    """The number of features of a state that is a vector.

    Raises
    ------
    ConfigError
        If the state has another shape.
    """
    if len(state_shape) != 1 or state_shape[0] < 1:
        raise ConfigError(f"this backbone takes states that are vectors, with a shape like (50,), not {tuple(state_shape)}")
    return state_shape[0]
