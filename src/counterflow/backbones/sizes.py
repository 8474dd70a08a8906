"""Named sizes, and what shape a state has."""

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


def image_shape(state_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of a state that is an image.

    Raises
    ------
    ConfigError
        If the state has another shape.
    """
    if len(state_shape) != 3 or min(state_shape) < 1:
        raise ConfigError(f"this backbone takes states that are images, with a shape like (3, 32, 32), not {tuple(state_shape)}")
    n_channels, height, width = state_shape
    return n_channels, height, width
