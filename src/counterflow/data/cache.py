"""The cache of a file: its counts once more, as small as they can be, cells of one condition and context side by side.

::

    screen.h5ad.cells/
      meta.json     what is in it, of which file it was made, sizes and sha256 of the other files; written last
      pairs.bin     every count: its gene and its value, cell after cell (2 + 2 bytes each, where both fit)
      start.i8      where each cell begins among the pairs, in the order of storage
      place.i4      which place each row of the file has in that order
      totals.f4     counts per row of the file
      genes.npz     of every gene: cells with a count, the lowest and the highest

Training reads sets of cells of one condition and context: here they lie close together, so that a set is a few reads. Files are read
with `pread`, not mapped, so that the memory of the process does not grow with what was read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from counterflow.data.facts import Facts
from counterflow.data.values import Values
from counterflow.errors import DataError

FORMAT, SCHEMA = "counterflow-cells", 1
SUFFIX = ".cells"
_NEAR = 8192  # bytes between two wanted cells that are read along: cheaper than to begin anew
_PIECES = 64  # of the source, looked at to tell whether it is the same file


def cache_path(source: Path) -> Path:
    """Where the cache of a file is."""
    return source.with_name(source.name + SUFFIX)


def pair_type(gene: str, value: str) -> np.dtype:
    """One count: its gene and its value."""
    return np.dtype([("gene", gene), ("value", value)])


class CacheStore:
    """An open cache.

    Raises
    ------
    DataError
        If a file of it is missing or has another size than it had.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.meta = path, read_meta(path)
        for name, entry in self.meta["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise damaged(path, f"{name} is missing or cut off")
        self.shape: tuple[int, int] = (int(self.meta["cells"]), int(self.meta["genes"]))
        self.n_values = int(self.meta["values"])
        self._pair = pair_type(*self.meta["pair"])
        self._start = np.fromfile(path / "start.i8", dtype="<i8")
        self._place = np.fromfile(path / "place.i4", dtype="<i4")
        if len(self._start) != self.shape[0] + 1 or len(self._place) != self.shape[0] or self._start[-1] != self.n_values:
            raise damaged(path, "its tables disagree")
        self._pairs = os.open(path / "pairs.bin", os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_pairs"):
            os.close(self._pairs)

    def order(self, rows: NDArray) -> NDArray:
        """Cells of one condition and context are neighbours."""
        return self._place[rows]

    def read(self, rows: NDArray) -> sparse.csr_matrix:
        """Counts of these rows, in the order given."""
        if not len(rows):
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        place = self._place[rows]
        in_order = np.argsort(place)
        begin, length = self._start[place], self._start[place + 1] - self._start[place]
        first, last = begin[in_order], (begin + length)[in_order]
        new = np.concatenate([[True], first[1:] - last[:-1] > _NEAR // self._pair.itemsize])  # runs of cells that are read at once
        run_begin, run_end = first[new], last[np.concatenate([new[1:], [True]])]
        base = np.concatenate([[0], np.cumsum(run_end - run_begin)])  # of each run in the buffer
        at = np.empty(len(rows), dtype=np.int64)
        at[in_order] = first + (base[:-1] - run_begin)[np.cumsum(new) - 1]
        indptr = np.concatenate([[0], np.cumsum(length)])
        buffer = self._read(run_begin, base)
        return self._csr(buffer[np.repeat(at - indptr[:-1], length) + np.arange(indptr[-1])], indptr)

    def _read(self, begin: NDArray, base: NDArray) -> NDArray:
        """Runs of pairs, one after the other."""
        size = self._pair.itemsize
        buffer = np.empty(int(base[-1]), dtype=self._pair)
        view = memoryview(buffer.view(np.uint8).data) if len(buffer) else memoryview(b"")
        offsets, ends = (begin * size).tolist(), (base * size).tolist()
        for i, offset in enumerate(offsets):
            at, stop = ends[i], ends[i + 1]
            while at < stop:
                read = os.preadv(self._pairs, [view[at:stop]], offset)
                if read <= 0:
                    raise damaged(self.path, "pairs.bin ends too early")
                at, offset = at + read, offset + read
        return buffer.view(np.uint32) if self._pair == pair_type("<u2", "<u2") else buffer

    def _csr(self, pairs: NDArray, indptr: NDArray) -> sparse.csr_matrix:
        if pairs.dtype == np.uint32:
            genes, values = (pairs & np.uint32(0xFFFF)).astype(np.int32), (pairs >> np.uint32(16)).astype(np.float32)
        else:
            genes, values = pairs["gene"].astype(np.int32), pairs["value"].astype(np.float32)
        if len(genes) and genes.max() >= self.shape[1]:
            raise damaged(self.path, f"it holds a gene number {int(genes.max())}, but there are {self.shape[1]} genes")
        counts = sparse.csr_matrix(
            (values, genes, indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64)), shape=(len(indptr) - 1, self.shape[1])
        )
        counts.has_canonical_format = True
        return counts

    def facts(self) -> Facts:
        """What the pass that made it has found."""
        with np.load(self.path / "genes.npz", allow_pickle=False) as genes:
            per_gene = {name: genes[name] for name in ("measured", "lowest", "highest")}
        totals = np.fromfile(self.path / "totals.f4", dtype="<f4")
        return Facts(totals, **per_gene, values=Values(**self.meta["seen"]), unrecovered=self.meta["unrecovered"])

    def verify(self) -> None:
        """Read every byte and compare its sha256 with the one noted when the cache was made."""
        for name, entry in self.meta["files"].items():
            if sha256(self.path / name) != entry["sha256"]:
                raise damaged(self.path, f"{name} is not what was written")


def read_meta(path: Path) -> dict[str, Any]:
    """The description of a cache."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or not meta["complete"]:
            raise ValueError
        newer = meta["schema"] > SCHEMA
        [
            meta[name]
            for name in ("cells", "genes", "values", "pair", "files", "source", "layer", "matrix_state", "library", "seen", "unrecovered")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(path, "meta.json cannot be read") from None
    if newer:
        raise DataError(f"{os.fspath(path)!r} was made by a newer version of counterflow: upgrade, or delete it")
    return meta


def damaged(path: Path, why: str) -> DataError:
    """The error of a cache that cannot be used."""
    return DataError(f"{os.fspath(path)!r} is a damaged cache ({why}): delete it, and make it again with counterflow convert")


def cache_of(source: Path, layer: str | None, matrix_state: str, library: str | None) -> CacheStore | None:
    """The cache beside a file, if there is one that was made of this file as it is now, and of the same matrix."""
    path = cache_path(source)
    if not path.is_dir():
        return None
    store = CacheStore(path)
    if (store.meta["layer"], store.meta["matrix_state"], store.meta["library"]) != (layer, matrix_state, library):
        return None  # of another matrix of the file
    check_source(store, source)
    return store


def check_source(store: CacheStore, source: Path) -> None:
    """Raise DataError where the file that a cache was made of is not as it was."""
    made_of = store.meta["source"]
    try:
        status = source.stat()
    except OSError:
        raise DataError(f"{os.fspath(source)!r} is not there: its cache alone is of no use") from None
    unchanged = (status.st_size, status.st_mtime_ns) == (made_of["bytes"], made_of["mtime_ns"])
    if not unchanged and (status.st_size != made_of["bytes"] or file_fingerprint(source) != made_of["fingerprint"]):
        raise DataError(
            f"{os.fspath(store.path)!r} was made of {source.name!r} as it was before it changed: delete it, or make it again with "
            "counterflow convert --overwrite"
        )


def file_fingerprint(source: Path) -> str:
    """SHA-256 of the size of a file and of pieces from all over it."""
    size = source.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with source.open("rb") as handle:
        for at in np.linspace(0, max(size - 4096, 0), _PIECES).astype(np.int64).tolist():
            handle.seek(at)
            digest.update(handle.read(4096))
    return digest.hexdigest()


def sha256(file: Path) -> str:
    """Of all of a file, a piece at a time."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
