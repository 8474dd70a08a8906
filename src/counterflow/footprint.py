"""How much memory and time a fit will take, told before it starts; from measured fits (docs/decisions.md), and off by half at times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from counterflow.data.source import enough
from counterflow.errors import ConfigError

LIBRARIES = 600 * 2**20  # torch, Lightning and what they bring, loaded
_SPARSE = 8  # bytes of a stored value and its column
_COPIES = 4  # of the sparse matrix: as read, as counts, and twice on the way to log1p
_PER_CELL = 250  # of a file that stays on disk: names, columns, where a cell is, what it is known by
_BLOCKS = 200 * 2**20  # of its cells, read one after the other
_DECODER = 120 * 2**20  # the Poisson decoder of pca, on at most 5,000 cells
_PER_WEIGHT = 4 * 5  # weight, gradient, two moments of the optimiser, average
_LOOK_UP = 2 * 2**30  # larger states are encoded batch by batch
SHARE = 0.5  # of the memory that may be taken, for the cells: what takes more stays on disk
STEP_SECONDS = 0.024  # of the default network and batch, on one core


@dataclass(frozen=True)
class Footprint:
    """Bytes of the resident process at its largest, by what needs them."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.parts.items())
        return f"about {self.total / 1e9:.1f} GB ({listed})"


def footprint(
    n_cells: int, n_genes: int, n_values: int | None, *, space: str, state_size: int, n_weights: int = 10**6, batch: int = 128 * 2**20
) -> Footprint:
    """What a fit needs.

    Parameters
    ----------
    n_values
        The stored values of the matrix; ``None``: they stay on disk.
    batch
        What a training step keeps for its backward pass.
    """
    learnt_on = len(enough(n_cells, n_genes, 0))
    fitted = {"pca": 4 * min(learnt_on, 16384) * n_genes + _DECODER, "raw": 0}.get(space, 4 * learnt_on * n_genes)
    states = 4 * n_cells * state_size if n_values is not None else 0
    cells = cells_in_memory(n_values) if n_values is not None else _PER_CELL * n_cells + _BLOCKS
    return Footprint(
        {
            "libraries": LIBRARIES,
            "cells": cells,
            f"space {space}": fitted + (states if states <= _LOOK_UP else 0),
            "network": _PER_WEIGHT * n_weights + batch,
        }
    )


def cells_in_memory(n_values: int) -> int:
    """Bytes of the cells of a file with that many stored values, and of what is made of them."""
    return _COPIES * _SPARSE * n_values


def check_memory(needed: Footprint, limit: float | None) -> None:
    """Refuse a fit that needs more than `limit` gigabytes (None: more than is free)."""
    allowed = limit * 1e9 if limit is not None else free_memory()
    if allowed is not None and needed.total > allowed:
        source = "memory_limit" if limit is not None else "free here"
        raise ConfigError(
            f"this fit needs {needed}, and {allowed / 1e9:.1f} GB are {source}: model fewer genes (n_top_genes=2000), fit on fewer cells, "
            "take a smaller network, or raise memory_limit"
        )


def free_memory() -> int | None:
    """Bytes this process may come to hold, what it holds now included; None where the system does not say."""
    free = [value for value in (_system_free(), _group_free()) if value is not None]
    return None if not free else min(free) + _resident()


def _system_free() -> int | None:
    return _line("/proc/meminfo", "MemAvailable:")


def _resident() -> int:
    return _line("/proc/self/status", "VmRSS:") or 0


def _line(file: str, name: str) -> int | None:
    """Bytes behind a name in a table of the kernel, in kB there."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _group_free() -> int | None:
    """What the control group of a container leaves, pages that it can give back included."""
    for most, used, table in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        try:
            limit, taken = (int((folder / name).read_text(encoding="utf-8")) for name in (most, used))
            stat = dict(line.split() for line in (folder / table).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            continue
        return max(0, limit - taken + int(stat.get("inactive_file", 0)))
    return None


def describe_time(n_cells: int, n_genes: int, n_values: int, *, n_steps: int = 200, n_fits: int = 3) -> str:
    """Minutes of one core that a default fit takes, in words."""
    seconds = 5 + 2.5e-6 * n_values + 1e-7 * n_cells * n_genes + n_fits * n_steps * STEP_SECONDS
    return f"about {max(1, round(seconds / 60))} min of one core for {n_steps} steps"
