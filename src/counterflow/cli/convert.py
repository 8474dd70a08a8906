"""`counterflow convert`: the cache of a file that is too large for the memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from counterflow.cli.parser import VerbParser
from counterflow.cli.screen import setup_from
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    from counterflow.cli.terminal import Terminal

EXAMPLE = """  counterflow convert screen.h5ad --setup.perturbation_key gene --setup.control non-targeting --setup.match_keys '[batch]'
  counterflow convert screen.h5ad --verify"""


def parser() -> VerbParser:
    """The options of `convert`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "convert", "FILE --setup.perturbation_key K --setup.control C [options]",
        "Make the cache of a file beside it (FILE.cells): cells of one condition and context side by side, so that a fit reads them fast\n"
        "from disk. The file may be larger than the memory. A conversion that was stopped goes on where it was.", EXAMPLE,
    )  # fmt: skip
    verb.positional("file", "the screen (.h5ad)")
    verb.flag("overwrite", "make it anew, whatever is there")
    verb.flag("verify", "only read the cache that is there, and compare every byte with the sums noted when it was made")
    verb.call("setup", CounterFlow.setup_anndata)
    return verb


def run(argv: Sequence[str]) -> None:
    """Convert, and say how large the result is."""
    from counterflow.data.cache import CacheStore, cache_path
    from counterflow.data.convert import convert

    options, terminal = parser().parse(argv)
    if options.verify:
        verify(Path(options.file), terminal)
        return
    if options.setup.split_key is not None:
        raise ConfigError("--setup.split_key has no meaning here: a cache holds all cells, whatever is held out later")
    there = cache_path(Path(options.file)).is_dir() and not options.overwrite
    begun = time.perf_counter()
    path = convert(options.file, setup_from(options, options.file), overwrite=options.overwrite)
    seconds = time.perf_counter() - begun
    n_cells, n_genes = CacheStore(path).shape
    size = sum(file.stat().st_size for file in path.iterdir())
    did = "was there already, and is whole" if there else f"made in {seconds:.0f} s ({n_cells / max(seconds, 1e-3):,.0f} cells/s)"
    terminal.say(f"{path}: {n_cells:,} cells x {n_genes:,} genes, {size / 1e9:.2g} GB, {did}")
    terminal.result(
        {"cache": str(path), "cells": n_cells, "genes": n_genes, "bytes": size, "seconds": round(seconds, 1), "made": not there}
    )


def verify(file: Path, terminal: Terminal) -> None:
    """Check a cache: every file of it has the sha256 noted when it was made, and the source is as it was."""
    from counterflow.data.cache import CacheStore, cache_path, check_source

    path = cache_path(file)
    if not path.is_dir():
        raise ConfigError(f"{os.fspath(file)!r} has no cache (there is no {path.name!r} beside it): make it with counterflow convert")
    store = CacheStore(path)
    check_source(store, file)
    with terminal.working(f"reading {path}"):
        store.verify()
    terminal.say(f"{path} is whole: {store.shape[0]:,} cells x {store.shape[1]:,} genes, as they were written")
    terminal.result({"cache": str(path), "cells": store.shape[0], "genes": store.shape[1], "whole": True})
