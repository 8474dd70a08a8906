"""A bar with the time left, where somebody watches; a log file wants none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], text: str, sizes: Sequence[int], done: int = 0) -> Iterator[T]:
    """`items`, with a bar beside `text`; `sizes` say how much work each of them is, `done` how much was before the first of them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=done + sum(sizes), completed=done)
        for item, weight in zip(items, sizes, strict=True):
            yield item
            progress.advance(task, weight)
