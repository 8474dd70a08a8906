"""A choice is a name from a dict, or your own object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from counterflow.errors import ConfigError, near

Option = TypeVar("Option")


def choose(choice: str | Option, options: Mapping[str, Option], what: str) -> Option:
    """The option called `choice`, or `choice` itself when it is not a name.

    Raises
    ------
    ConfigError
        If there is no option of that name; `what` ("solver", "coupling", ...) and the near matches are in the message.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in options:
        raise ConfigError(f"unknown {what} {choice!r}: {near(choice, options)}")
    return options[choice]
