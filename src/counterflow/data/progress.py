"""A bar with the time left, where somebody watches; a log file wants none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Sequence[T], text: str, sizes: Sequence[int] | None = None) -> Iterator[T]:
    """`items`, with a bar beside `text`; `sizes` say how much work each of them is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield from items
        return
    weights = [1] * len(items) if sizes is None else list(sizes)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=sum(weights))
        for item, weight in zip(items, weights, strict=True):
            yield item
            progress.advance(task, weight)
