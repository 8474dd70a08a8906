"""A bar with the time left, where somebody watches; a log file wants none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_WANTED = ContextVar("bars are wanted", default=True)


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars meanwhile, whoever watches."""
    before = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(before)


def tracked(items: Iterable[T], text: str, sizes: Sequence[int], done: int = 0) -> Iterator[T]:
    """`items`, with a bar beside `text`; `sizes` say how much work each of them is, `done` how much was before the first of them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not _WANTED.get() or not (console.is_terminal or console.is_jupyter):
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=done + sum(sizes), completed=done)
        for item, weight in zip(items, sizes, strict=True):
            yield item
            progress.advance(task, weight)
