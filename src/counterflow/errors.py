"""The errors a user can cause. Each message says what is wrong, where, and how to fix it."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class CounterflowError(Exception):
    """Base class: the user's input, not our fault. The command line prints it and exits with code 2; a notebook shows it alone."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message, and the line of the user's that it is about."""
        theirs = [frame for frame in traceback.extract_tb(self.__traceback__) if not _is_ours(frame.filename) and frame.line]
        at = [f"in line {theirs[-1].lineno}: {theirs[-1].line}"] if theirs else []
        return [f"{type(self).__name__}: {self}", *at]


class DataError(CounterflowError):
    """The AnnData, or the file it came from, cannot be used as declared."""


class ConfigError(CounterflowError):
    """An option, a name or a combination of options does not exist or does not fit."""


class CheckpointError(CounterflowError):
    """A saved model is damaged, incomplete, or from another version."""


class DivergenceError(CounterflowError, ArithmeticError):
    """A model computes values that are no finite numbers."""


class ProcessError(CounterflowError):
    """Another of the processes that train a model ended."""


class CounterflowWarning(UserWarning):
    """Something that does not stop the work, but changes what it means. The command line prints it to stderr, once."""


def _is_ours(file: str) -> bool:
    """Whether code is this package's, or of what runs cells and tests: not what a user wrote."""
    places = (os.path.dirname(os.path.abspath(__file__)), os.path.join("site-packages", ""), os.path.dirname(os.__file__))
    return any(place in os.path.abspath(file) for place in places)


def warn(text: str, above: int = 1) -> None:
    """Warn of something as if it stood `above` calls above the function that says it."""
    warnings.warn(text, CounterflowWarning, stacklevel=2 + above)


_LONGEST_NAME = 200  # letters: comparing names takes the square of that


def near(name: object, options: Iterable[object], *, most: int = 8) -> str:
    """The end of an error message about an unknown `name`: its near matches, else what there is."""
    known = [str(option) for option in options]
    short = [option for option in known if len(option) <= _LONGEST_NAME]
    close = get_close_matches(str(name)[:_LONGEST_NAME], short, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not known:
        return "there are none"
    listed = ", ".join(repr(option) for option in known[:most])
    return f"available: {listed}" + (f", and {len(known) - most} more" if len(known) > most else "")
