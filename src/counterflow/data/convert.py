"""From an h5ad to the cache of it: one pass over the file in its own order, every cell written to its place, in bounded memory.

A conversion that was stopped goes on where it was: a block of cells is always written to the same places. What is not complete is called
``.partial``, and gets its name when all is there, checked and on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.alone import alone
from counterflow.data.cache import FORMAT, SCHEMA, CacheStore, cache_of, cache_path, file_fingerprint, pair_type, sha256
from counterflow.data.csc import by_cells, is_by_genes
from counterflow.data.facts import Facts
from counterflow.data.h5_store import H5Store
from counterflow.data.labels import distinct_rows
from counterflow.data.matrix import named, place, unrecovered_problem
from counterflow.data.progress import tracked
from counterflow.data.schema import Setup
from counterflow.data.stored import library_sizes, open_h5ad
from counterflow.data.values import Values, value_problems
from counterflow.errors import DataError, near

_SMALL = 2**16  # gene numbers and counts below it take two bytes
_EVERY = 5.0  # seconds between notes of how far it is


class _AnotherLayout(Exception):
    """What was assumed of the file (small counts; no zero and nothing twice) does not hold."""


@dataclass(frozen=True)
class _Plan:
    """Where every cell goes."""

    store: H5Store
    place: NDArray[np.int32]  # n, of each row of the file
    lengths: NDArray[np.int64]  # n, counts of each row of the file
    value: str  # type of a count

    @property
    def start(self) -> NDArray[np.int64]:
        """N + 1, in the order of storage."""
        ordered = np.empty_like(self.lengths)
        ordered[self.place] = self.lengths
        return np.concatenate([[0], np.cumsum(ordered)])

    @property
    def pair(self) -> tuple[str, str]:
        """Types of a gene number and a count."""
        return "<u2" if self.store.shape[1] <= _SMALL else "<u4", self.value


def convert(path: str | os.PathLike[str], setup: Setup, *, overwrite: bool = False) -> Path:
    """Make the cache of an h5ad file, beside it; returns where it is. One that is there and good is kept.

    Parameters
    ----------
    path
        The file; its matrix (X or ``setup.layer``) may be larger than the memory.
    setup
        What its columns mean: cells of one condition and context are put side by side.
    overwrite
        Make it anew, whatever is there.

    Raises
    ------
    DataError
        If the matrix is not what was declared, the disk is full, or a cache of another matrix is there.
    """
    source = Path(path)
    adata = open_h5ad(source)
    if missing := [key for key in setup.obs_keys if key not in adata.obs]:
        raise DataError(f"adata.obs has no column {missing[0]!r}: {near(missing[0], adata.obs.columns)}")
    library, target = library_sizes(adata.obs, setup), cache_path(source)
    of_library = None if library is None or setup.matrix_state != "log1p" else blake2b(library.tobytes()).hexdigest()
    if overwrite:
        shutil.rmtree(target, ignore_errors=True)
    elif target.exists():
        there = cache_of(source, setup.layer, setup.matrix_state, of_library)
        if there is None:
            raise DataError(f"{os.fspath(target)!r} is the cache of another matrix of this file: make it anew with --overwrite")
        there.verify()
        return target
    keys = [*setup.match_keys, setup.perturbation_key, *(key for key in (setup.dose_key, setup.time_key) if key is not None)]
    _, group = distinct_rows(adata.obs, keys)
    order = np.argsort(group, kind="stable")
    at = np.empty(len(order), dtype=np.int32)
    at[order] = np.arange(len(order), dtype=np.int32)
    del order

    partial = target.with_name(target.name + ".partial")
    fingerprint = file_fingerprint(source)
    about = {"fingerprint": fingerprint, "layer": setup.layer, "matrix_state": setup.matrix_state, "library": of_library}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with alone(partial):
            store = _store(source, setup, library, partial, fingerprint)
            if store.shape != (adata.n_obs, adata.n_vars):
                size = f"{store.shape[0]} x {store.shape[1]}"
                raise DataError(f"{place(setup.layer)} is {size}, but there are {adata.n_obs} x {adata.n_vars} names")
            plan, facts = _write(store, at, partial, about | {"places": blake2b(at.tobytes()).hexdigest()})
            found = value_problems(facts.values, setup.matrix_state, place(setup.layer), lambda where: named(adata, where), lambda: [])
            if problem := unrecovered_problem(facts.unrecovered, adata.n_obs):
                found.append(problem)
            if found:
                shutil.rmtree(partial)
                raise DataError(found[0])
            _finish(plan, facts, partial, source, about, keys)
            os.replace(partial, target)
    except OSError as error:
        raise DataError(f"cannot write {os.fspath(partial)!r}: {error.strerror or error}") from None
    return target


def _store(source: Path, setup: Setup, library: NDArray | None, partial: Path, fingerprint: str) -> H5Store:
    """The matrix by cells; one that is stored by genes is turned first, into a file that is removed at the end."""
    if not is_by_genes(source, setup.layer):
        return H5Store(source, setup.layer, setup.matrix_state, library)
    turned = partial / f"rows-{blake2b(f'{fingerprint} {setup.layer}'.encode(), digest_size=8).hexdigest()}.h5"
    for other in set(partial.glob("rows-*")) - {turned}:  # of a file that changed
        other.unlink()
    return H5Store(by_cells(source, setup.layer, turned), None, setup.matrix_state, library)


def _write(store: H5Store, at: NDArray[np.int32], partial: Path, about: dict[str, Any]) -> tuple[_Plan, Facts]:
    """All cells in their places; with another layout where the usual one does not do."""
    plan = _Plan(store, at, np.diff(store.indptr) if not store.is_dense else _count(store), "<u2")
    for layout in ("usual", "counted", "large"):
        if layout == "counted":
            plan = _Plan(store, at, _count(store), "<u2")
        elif layout == "large":
            plan = _Plan(store, at, _count(store), "<f4")
        try:
            return plan, _pass(plan, partial, about | {"layout": layout})
        except _AnotherLayout:
            continue
    raise AssertionError("no layout holds these counts")


def _count(store: H5Store) -> NDArray[np.int64]:
    """Counts of each row that are not zero, by a pass of its own."""
    lengths = np.zeros(store.shape[0], dtype=np.int64)
    blocks = store.blocks()
    for start, stop in tracked(blocks, "counting", [stop - start for start, stop in blocks]):
        counts, _ = store.counts(store.raw(start, stop), np.arange(start, stop))
        lengths[start:stop] = np.diff(counts.indptr)
    return lengths


def _pass(plan: _Plan, partial: Path, about: dict[str, Any]) -> Facts:
    store, start = plan.store, plan.start
    pair = pair_type(*plan.pair)
    needed = int(start[-1]) * pair.itemsize
    pairs_file, totals_file = partial / "pairs.bin", partial / "totals.f4"
    done, facts = _resume(partial, about, store)
    there = pairs_file.stat().st_size if pairs_file.exists() else 0
    if (free := shutil.disk_usage(partial).free) < needed - there:
        raise DataError(f"the cache takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {os.fspath(partial.parent)!r}")
    blocks = store.blocks()
    noted = time.monotonic()
    with pairs_file.open("r+b" if pairs_file.exists() else "w+b") as handle:
        os.ftruncate(handle.fileno(), needed)
        for number, (first, last) in enumerate(tracked(blocks, "converting", [b - a for a, b in blocks])):
            if number < done:
                continue
            counts = facts.add(store.raw(first, last), store, first)
            if counts is None:  # what is wrong is told when all of it is known
                continue
            if not np.array_equal(np.diff(counts.indptr), plan.lengths[first:last]):
                raise _AnotherLayout
            if plan.value == "<u2" and counts.nnz and (counts.data.max() >= _SMALL or (counts.data != np.rint(counts.data)).any()):
                if (counts.data != np.rint(counts.data)).any():
                    continue
                raise _AnotherLayout
            _put(counts, plan.place[first:last], start, pair, handle.fileno())
            if time.monotonic() - noted > _EVERY:
                os.fdatasync(handle.fileno())
                _note(partial, about, number + 1, facts)
                noted = time.monotonic()
        os.fsync(handle.fileno())
    facts.totals.astype("<f4").tofile(totals_file)
    return facts


def _put(counts: sparse.csr_matrix, at: NDArray, start: NDArray, pair: np.dtype, file: int) -> None:
    """Write the cells of a block to their places: those that come to lie side by side at once."""
    order = np.argsort(at, kind="stable")
    at = at[order]
    ordered = counts[order]
    pairs = np.empty(ordered.nnz, dtype=pair)
    pairs["gene"], pairs["value"] = ordered.indices, ordered.data
    runs = np.flatnonzero(np.diff(at) != 1) + 1
    begins, ends = np.concatenate([[0], runs]), np.concatenate([runs, [len(at)]])
    view = memoryview(pairs.view(np.uint8).data) if len(pairs) else memoryview(b"")
    offsets = (start[at[begins]] * pair.itemsize).tolist()
    firsts, lasts = (ordered.indptr[begins] * pair.itemsize).tolist(), (ordered.indptr[ends] * pair.itemsize).tolist()
    for first, last, offset in zip(firsts, lasts, offsets, strict=True):
        while first < last:
            written = os.pwrite(file, view[first:last], offset)
            first, offset = first + written, offset + written


def _note(partial: Path, about: dict[str, Any], done: int, facts: Facts) -> None:
    """How far it is: after this block all that was written is on the disk."""
    state = {"about": about, "done": done, "values": asdict(facts.values), "unrecovered": facts.unrecovered}
    new = partial / "state.new"
    with new.open("wb") as handle:
        np.savez(
            handle, totals=facts.totals, measured=facts.measured, lowest=facts.lowest, highest=facts.highest,
            state=np.frombuffer(json.dumps(state).encode(), dtype=np.uint8),
        )  # fmt: skip
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(new, partial / "state.npz")


def _resume(partial: Path, about: dict[str, Any], store: H5Store) -> tuple[int, Facts]:
    """Blocks that are done, and what is known of them; none, if the last conversion was another one."""
    try:
        with np.load(partial / "state.npz", allow_pickle=False) as kept:
            state = json.loads(kept["state"].tobytes())
            arrays = {name: kept[name] for name in ("totals", "measured", "lowest", "highest")}
        if state["about"] == about:
            return state["done"], Facts(**arrays, values=_values(state["values"]), unrecovered=state["unrecovered"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return 0, Facts.nothing(*store.shape)


def _values(kept: dict[str, Any]) -> Values:
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Values(**plain)


def _finish(plan: _Plan, facts: Facts, partial: Path, source: Path, about: dict[str, Any], keys: Sequence[str]) -> None:
    """The tables, the description, and everything on the disk."""
    plan.start.astype("<i8").tofile(partial / "start.i8")
    plan.place.astype("<i4").tofile(partial / "place.i4")
    with (partial / "genes.npz").open("wb") as handle:
        np.savez(handle, measured=facts.measured, lowest=facts.lowest, highest=facts.highest)
    names = ("pairs.bin", "start.i8", "place.i4", "totals.f4", "genes.npz")
    files = {name: {"bytes": (partial / name).stat().st_size, "sha256": sha256(partial / name)} for name in names}
    for scratch in (partial / "state.npz", *partial.glob("rows-*")):
        scratch.unlink(missing_ok=True)
    status = source.stat()
    meta = {
        "format": FORMAT, "schema": SCHEMA, "complete": True,
        "cells": plan.store.shape[0], "genes": plan.store.shape[1], "values": int(plan.start[-1]), "pair": list(plan.pair),
        "layer": about["layer"], "matrix_state": about["matrix_state"], "library": about["library"], "grouped_by": list(keys),
        "source": {
            "path": os.fspath(source.resolve()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns,
            "fingerprint": about["fingerprint"],
        },
        "seen": asdict(facts.values), "unrecovered": facts.unrecovered, "files": files,
    }  # fmt: skip
    with (partial / "meta.json").open("w", encoding="utf-8") as handle:
        json.dump(meta, handle, indent=1)
    for name in (*names, "meta.json"):
        with (partial / name).open("rb") as handle:
            os.fsync(handle.fileno())
    CacheStore(partial)
