"""`counterflow doctor`: what is in a file, what is wrong with it, and how to declare it."""

from __future__ import annotations

from collections.abc import Sequence

from counterflow.cli.parser import VerbParser

EXAMPLE = "  counterflow doctor screen.h5ad"


def parser() -> VerbParser:
    """The options of `doctor`."""
    verb = VerbParser(
        "doctor", "FILE", "Look at a file: what is in it, what is wrong with it, how to declare it. Changes nothing.", EXAMPLE
    )
    verb.positional("file", "the screen (.h5ad)")
    return verb


def run(argv: Sequence[str]) -> None:
    """Print the diagnosis."""
    from counterflow.diagnosis.doctor import doctor

    options, terminal = parser().parse(argv)
    with terminal.working(f"looking at {options.file}"):
        diagnosis = doctor(options.file)
    terminal.say(str(diagnosis))
    terminal.result(diagnosis.to_dict())
