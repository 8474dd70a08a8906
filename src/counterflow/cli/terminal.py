"""What a verb says: tables and lines for people, or one JSON object for programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDE = 400  # columns


@dataclass(frozen=True)
class Terminal:
    """Where a verb writes. People read stdout, unless it is reserved for JSON; colour and moving bars appear on a terminal only."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def console(self) -> Console:
        """For people. Into a file or a pipe, numbers are written whole, however wide a table gets."""
        width = None if sys.stdout.isatty() else WIDE
        return Console(file=sys.stdout, highlight=False, quiet=self.quiet or self.as_json, soft_wrap=True, width=width)

    @property
    def progress(self) -> bool:
        """Whether a moving bar is wanted and can be shown."""
        return sys.stdout.isatty() and not (self.quiet or self.as_json)

    def say(self, text: str = "", *, style: str | None = None) -> None:
        """One line, taken literally."""
        self.console.print(text, style=style, markup=False)

    def detail(self, text: str) -> None:
        """One line, with --verbose only."""
        if self.verbose:
            self.say(text, style="dim")

    def pairs(self, values: Mapping[str, object]) -> None:
        """Names and values in two columns."""
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            self.say(f"  {name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        """A table; numbers are right-aligned."""
        shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for i, name in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
            shown.add_column(name, justify="right" if numeric else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*(f"{value:.3f}".replace("-0.000", "0.000") if isinstance(value, float) else str(value) for value in row))
        self.console.print(shown)

    def result(self, values: Mapping[str, Any]) -> None:
        """The one JSON object of the verb, on stdout; nothing without --json."""
        if self.as_json:
            print(json.dumps(values, indent=1, default=str, ensure_ascii=False))

    @contextmanager
    def working(self, text: str) -> Iterator[Callable[[str], None]]:
        """A spinner beside `text` while something long runs. What it hands out replaces the text; after "3 of 12" follows the time left."""
        if not self.progress:
            yield lambda line: None
            return
        with self.console.status(text) as status:
            yield Countdown(lambda line: status.update(escape(line)))


class Countdown:
    """Lines such as "scoring 3 of 12: KLF1", handed on with the time that the rest will take if it goes on like this."""

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.show, self.clock, self.begun = show, clock, clock()

    def __call__(self, line: str) -> None:
        """Show the line."""
        count = re.search(r"(\d+) of (\d+)", line)
        if count is None or int(count[1]) < 2:  # what comes before the first one is done is no measure
            self.begun = self.clock()
            self.show(line)
            return
        done, of = int(count[1]) - 1, int(count[2])
        left = (self.clock() - self.begun) / done * (of - done)
        self.show(f"{line}, about {f'{left:.0f} s' if left < 90 else f'{left / 60:.0f} min'} left")
