"""`counterflow generate`: CounterFlow.predict (counterfactuals of given or kept controls) or, with --new, CounterFlow.generate."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from counterflow.cli import Stopped
from counterflow.cli.parser import VerbParser
from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.h5_parts import H5Parts
    from counterflow.model import CounterFlow

EXAMPLE = """  counterflow generate runs/first --condition KLF1+MAP2K6 --out cells.h5ad
  counterflow generate runs/first --condition KLF1 --condition MAP2K6 --controls my_controls.h5ad --out cells.h5ad
  counterflow generate runs/first --condition KLF1 --new --n_cells 500 --covariates.cell_type NK --out new.h5ad"""

_OF_THE_CALL = ("run", "out", "overwrite", "json", "quiet", "verbose", "debug")  # do not change the cells


def parser() -> VerbParser:
    """The options of `generate`."""
    from counterflow.model import CounterFlow

    verb = VerbParser(
        "generate", "RUN --condition C [--condition C2 ...] [options] --out CELLS.h5ad",
        "Cells under other conditions. They start from the control cells kept in the model, or from those of --controls.\n"
        "A call that was interrupted goes on where it was when it is repeated (the cells so far are in CELLS.h5ad.partial).", EXAMPLE,
    )  # fmt: skip
    add_condition_options(verb)
    verb.option("out", str | None, None, "the file to write (.h5ad)")
    verb.flag("overwrite", "start anew, whatever an interrupted call has left beside --out")
    verb.flag("new", "new cells, nobody's counterfactuals: counts are drawn anew (needs --n_cells)")
    verb.flag("panel", "for the genes of --controls, also those that were not in training, rather than those of the model")
    verb.call("", CounterFlow.predict, skip=("guidance_interval",))
    return verb


def add_condition_options(verb: VerbParser) -> None:
    """A run, what it is asked for, and the control cells to start from."""
    verb.positional("run", "a run directory, or a saved model")
    verb.option("condition", str, None, "what to ask for, e.g. KLF1 or KLF1+MAP2K6; may be given several times", repeat=True)
    verb.option("dose", str | None, None, "dose of every condition, for a model with doses (1.5, or 1.5+2 for two parts)")
    verb.option("time", float | None, None, "time after the perturbation, for a model with times")
    verb.option("controls", str | None, None, "a file (.h5ad) with the control cells to start from")
    verb.option("covariates", dict[str, Any] | None, None, "only controls with these levels, e.g. --covariates.cell_type NK")


def run(argv: Sequence[str]) -> None:
    """Predict and write."""
    options, terminal = parser().parse(argv)
    if not options.condition:
        raise ConfigError("--condition must be given at least once: what shall be done to the cells?")
    if options.out is None:
        raise ConfigError("--out CELLS.h5ad must be given: the file to write")
    out = Path(options.out)
    if out.suffix != ".h5ad" or out.is_dir():
        raise ConfigError(f"--out {options.out!r}: give the name of a file that ends in .h5ad")
    if options.new and (options.n_cells is None or options.controls is not None):
        raise ConfigError("--new needs --n_cells and takes no --controls: the cells start from what the model keeps")
    if options.panel and options.controls is None:
        raise ConfigError("--panel needs --controls: the genes are those of that file")

    from counterflow.cli.feed import read_or_open
    from counterflow.data.h5_parts import H5Parts
    from counterflow.model import CounterFlow

    with terminal.working(f"loading {options.run}"):
        model = CounterFlow.load(options.run)
    parts = H5Parts(out, request(options))
    if options.overwrite:
        parts.drop()
    if done := parts.find():
        terminal.say(f"going on after the {done:,} blocks of cells in {parts.folder}")
    controls = None if options.controls is None else read_or_open(options.controls, model.setup, None, terminal)
    if options.panel:
        model = model.on_panel(controls)
    blocks = _cells(model, controls, options, done, terminal)
    first = list(islice(blocks, 1))  # what cannot be predicted is told before anything is written
    counted, genes = write(chain(first, blocks), parts, progress=terminal.progress)
    _report(counted, len(model.genes), genes, out, terminal)


def request(options: Namespace) -> dict[str, Any]:
    """What the cells are a function of: the model, the controls, the options and the versions."""
    from counterflow.checkpoint import read_manifest, signed
    from counterflow.data.cache import file_fingerprint
    from counterflow.run import versions

    asked = {name: value for name, value in options.as_dict().items() if name not in _OF_THE_CALL}
    controls = None if options.controls is None else Path(options.controls)
    if controls is not None and controls.is_file():
        asked["controls"] = file_fingerprint(controls)
    return {"model": signed(read_manifest(options.run))["sha256"], **asked, "versions": versions()}


def _cells(model: CounterFlow, controls: AnnData | None, options: Namespace, done: int, terminal: Terminal) -> Iterator[AnnData]:
    """Some at a time: a million cells need no more memory than a few thousand."""
    from counterflow.sampling import Sampling

    conditions = condition_table(model, options)
    if options.new:
        return model.generate_in_blocks(
            conditions.drop(columns=list(options.covariates or {})), options.n_cells, covariates=options.covariates, seed=options.seed,
            solver=options.solver, n_steps=options.n_steps, skip_blocks=done, progress=terminal.progress,
        )  # fmt: skip
    sampling = Sampling(
        options.solver, options.n_steps, options.guidance, options.guidance_kind, seed=options.seed, decoder=options.decoder,
        precision=options.precision, combine=options.combine, mode=options.mode,
    )  # fmt: skip
    return model.predict_in_blocks(
        controls, conditions, n_cells=options.n_cells, sampling=sampling, on_unknown=options.on_unknown,
        missing_genes=options.missing_genes, compile=options.compile, skip_blocks=done, progress=terminal.progress,
    )  # fmt: skip


def condition_table(model: CounterFlow, options: Namespace) -> Any:
    """What is asked for, with the columns that the model was declared with."""
    import pandas as pd

    setup = model.setup
    table = pd.DataFrame({setup.perturbation_key: options.condition})
    for name, key, value in (("dose", setup.dose_key, options.dose), ("time", setup.time_key, options.time)):
        if key is None and value is not None:
            raise ConfigError(f"--{name} {value}: this model was fitted without {name}s (--setup.{name}_key)")
        if key is not None and value is None:
            raise ConfigError(f"this model was fitted with {name}s: give --{name}")
        if key is not None:
            table[key] = value
    for key, level in (options.covariates or {}).items():
        table[key] = str(level)
    return table


def write(blocks: Iterable[AnnData], parts: H5Parts, *, progress: bool = False) -> tuple[Counter[tuple[str, str]], dict[str, int] | None]:
    """Write the cells that are missing, and all of them as one file; how many of each condition and support, and how genes were found."""
    counted: Counter[tuple[str, str]] = Counter()
    genes: dict[str, int] = {}

    def look(block: AnnData) -> None:
        counted.update(zip(block.obs["condition"].astype(str), block.obs["support"].astype(str), strict=True))
        genes.update({name: int(n) for name, n in block.uns["counterflow"].get("genes", {}).items()})

    try:
        with parts.writing():
            for block in blocks:
                parts.add(block)
            parts.join(look, progress=progress)
    except OSError as error:
        kept = f"; {parts.n_done:,} blocks of cells are kept: make room, and give the same command again" if parts.n_done else ""
        raise ConfigError(f"cannot write {os.fspath(parts.path)!r}: {error.strerror or error}{kept}") from None
    except KeyboardInterrupt:
        if not parts.n_done:
            raise
        advice = f"; {parts.n_done:,} blocks of cells are in {os.fspath(parts.folder)!r}: give the same command again to go on"
        raise Stopped(signal.SIGINT, advice) from None
    return counted, genes or None


def _report(counted: Counter[tuple[str, str]], n_genes: int, genes: dict[str, int] | None, out: Path, terminal: Terminal) -> None:
    n_cells = counted.total()
    rows = [{"condition": condition, "support": support, "cells": n} for (condition, support), n in counted.items()]
    terminal.say(f"wrote {n_cells:,} cells x {n_genes:,} genes to {out}", style="bold")
    terminal.table(["condition", "cells", "support"], [[row["condition"], row["cells"], row["support"]] for row in rows])
    terminal.say("X: log1p of counts per 10,000   layers: counts, mean   obs: condition, source_cell, support", style="dim")
    if genes is not None and (genes["extra"] or genes["missing"]):
        said = "{used:,} used, {extra:,} extra left out, {missing:,} missing counted as zero"
        terminal.say(f"genes of the controls, by name: {said.format(**genes)}")
    result = {"file": str(out), "cells": n_cells, "genes": n_genes, "conditions": rows}
    terminal.result(result | ({} if genes is None else {"genes_by_name": genes}))
