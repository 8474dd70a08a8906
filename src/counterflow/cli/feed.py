"""Whether the counts of a file are read into memory or stay on disk: what fits is read, and what was chosen is said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from counterflow.cli.screen import SIMULATED, read_data
from counterflow.cli.terminal import Terminal
from counterflow.footprint import SHARE, cells_in_memory, free_memory

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.schema import Setup


def read_or_open(path: str, setup: Setup, limit: float | None, terminal: Terminal) -> AnnData:
    """The AnnData at `path`, in memory if its cells take less than half of `limit` gigabytes (None: of what is free)."""
    if path == SIMULATED:
        return read_data(path)
    from counterflow.data.cache import cache_path
    from counterflow.data.files import check_h5ad
    from counterflow.data.stored import open_h5ad, size_on_disk

    check_h5ad(path)
    needed = cells_in_memory(size_on_disk(path, setup.layer))
    allowed = limit * 1e9 if limit is not None else free_memory()
    if allowed is None or needed <= SHARE * allowed:
        with terminal.working(f"reading {path}"):
            return read_data(path)
    source = "memory_limit" if limit is not None else "free here"
    beside = cache_path(Path(path))
    place = f"its cache {beside}" if beside.is_dir() else "the file itself"
    terminal.say(
        f"cells stay on disk, and come from {place}: in memory they would take about {needed / 1e9:.2g} GB, more than {SHARE:.0%} "
        f"of the {allowed / 1e9:.2g} GB that are {source}"
    )
    return open_h5ad(path)
