"""An AnnData whose matrix stays on disk: opened, checked once, and read from the cache of it where there is one.

``anndata.read_h5ad(path, backed="r")`` or `open_h5ad` say that the matrix is to stay on disk; nothing else is different for the user.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.cache import cache_of
from counterflow.data.facts import Facts, scan
from counterflow.data.file_rows import FILE, file_of, is_on_disk, rows_of
from counterflow.data.files import _why_not_read, check_h5ad
from counterflow.data.h5_store import H5Store
from counterflow.data.matrix import named, place, sparse_remarks, unrecovered_problem
from counterflow.data.names import Names
from counterflow.data.source import Store, StoredCounts
from counterflow.data.values import value_problems
from counterflow.errors import DataError, near, warn

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.schema import Setup


class Stored(NamedTuple):
    """Counts on disk, and what is known of all rows of the file."""

    counts: StoredCounts
    facts: Facts
    totals: NDArray[np.float32]  # n, counts per cell


MANY = 200_000  # cells, whose names are kept as bytes
_REMEMBERED = 4
_known: dict[tuple, tuple[Store, Facts]] = {}  # of the files read last: a declaration is checked several times


def open_h5ad(path: str | os.PathLike[str]) -> AnnData:
    """Open an AnnData file whose matrices stay on disk: ``obs``, ``var`` and ``uns`` are read, X and layers when they are needed.

    Names of 200,000 cells or more are kept as bytes; AnnData writes them as texts only: ``adata.obs_names = adata.obs_names.astype(str)``.

    Raises
    ------
    DataError
        As `read_h5ad`.
    """
    check_h5ad(path)
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            handle = h5py.File(path, "r")
            columns, names = _obs_of(handle["obs"])
            adata = AnnData(filename=handle, obs=columns, **{name: read_elem(handle[name]) for name in ("var", "uns") if name in handle})
            if names is not None:
                adata.obs.index = names
            return adata
        except Exception as error:
            raise DataError(_why_not_read(error, Path(path), repr(os.fspath(path)))) from error


def _obs_of(group: Any) -> tuple[pd.DataFrame, pd.Index | None]:
    """The table of the cells, and its index where that is put in afterwards: names of many cells are not made into texts."""
    import h5py
    from anndata.io import read_elem

    key = group.attrs.get("_index", "_index") if isinstance(group, h5py.Group) else None
    names = group[key] if key in group else None
    if not isinstance(names, h5py.Dataset) or names.ndim != 1 or len(names) < MANY or h5py.check_string_dtype(names.dtype) is None:
        return read_elem(group), None
    columns = {str(name): read_elem(group[name]) for name in group.attrs["column-order"]}
    index = pd.Index(Names.of(names, len(names)), name=None if key == "_index" else key)
    alike = pd.Index(np.full(len(names), "", dtype=object))  # AnnData asks of every name whether it is a text, and there before
    return pd.DataFrame(columns, index=alike), index


def size_on_disk(path: str | os.PathLike[str], layer: str | None) -> int:
    """Stored values of the matrix of a file; 0 where there is none, which is told later."""
    import h5py

    with h5py.File(path, "r") as handle:
        matrix = handle.get("X" if layer is None else f"layers/{layer}")
        if isinstance(matrix, h5py.Dataset):
            return int(matrix.size)
        return len(matrix["indices"]) if matrix is not None and "indices" in matrix else 0


def is_stored(adata: AnnData, layer: str | None) -> bool:
    """Whether the matrix is to stay on disk."""
    return is_on_disk(adata) and (layer is None or layer not in adata.layers)


def stored(adata: AnnData, setup: Setup) -> Stored:
    """The matrix on disk as declared, checked from its first value to its last, once (also those of rows that are not chosen)."""
    file, rows = file_of(adata), rows_of(adata)
    status, library = file.stat(), None
    if setup.matrix_state == "log1p":  # to tell counts by, of every row of the file
        library = library_sizes(adata.obs if rows is None else _column(file, setup.library_size_key), setup)
    of_library = None if library is None else blake2b(library.tobytes()).hexdigest()
    key = (file.resolve(), status.st_size, status.st_mtime_ns, setup.layer, setup.matrix_state, of_library)
    if key not in _known:
        cache = cache_of(file, setup.layer, setup.matrix_state, of_library)
        if cache is not None:
            found: tuple[Store, Facts] = cache, cache.facts()
        else:
            store = H5Store(file, setup.layer, setup.matrix_state, library)
            found = store, scan(store)
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)))
        _known[key] = found
    there, facts = _known[key]
    return Stored(StoredCounts(there, rows), facts, facts.totals if rows is None else facts.totals[rows])


def _column(file: Path, key: str | None) -> pd.DataFrame:
    """A column of obs, of every cell of the file."""
    import h5py
    from anndata.io import read_elem

    if key is None:
        return pd.DataFrame()
    with h5py.File(file, "r") as handle:
        return pd.DataFrame({key: read_elem(handle["obs"][key])})


def read_cells_at(adata: AnnData, setup: Setup, positions: NDArray) -> AnnData:
    """A few cells in memory, as they are declared: the declared matrix of a file, nothing else of it."""
    if not is_stored(adata, setup.layer):
        return adata[positions].to_memory()
    from anndata import AnnData

    counts, rows = stored(adata, setup).counts, rows_of(adata)
    matrix = counts[positions]
    if setup.matrix_state == "log1p":  # the values, not the counts behind them
        file = H5Store(file_of(adata), setup.layer, "counts")
        matrix = file.read(positions if rows is None else rows[positions])
    uns = {name: value for name, value in adata.uns.items() if name != FILE}
    layers = {} if setup.layer is None else {setup.layer: matrix}
    return AnnData(
        matrix if setup.layer is None else None, obs=adata.obs.iloc[positions].copy(), var=adata.var.copy(), uns=uns, layers=layers
    )


def warn_of_place(adata: AnnData, setup: Setup) -> None:
    """Reading an h5ad in place takes much longer than reading the cache: say so, and what to do."""
    if not is_stored(adata, setup.layer) or not isinstance(stored(adata, setup).counts.store, H5Store):
        return
    words = ["counterflow", "convert", os.fspath(file_of(adata))]
    for name, value in setup.to_dict().items():
        if name != "split_key" and value not in (None, [], False, "counts", "+"):
            words += [f"--setup.{name}", json.dumps(value) if isinstance(value, list | bool) else str(value)]
    warn(
        f"cells are read from {file_of(adata).name!r} in place, which takes many times as long as from its cache; make that once: "
        + shlex.join(words),
        above=3,
    )


def library_sizes(obs: pd.DataFrame, setup: Setup) -> NDArray[np.float32] | None:
    """Counts per cell over all genes, where a column says so."""
    if setup.library_size_key is None or setup.library_size_key not in obs:
        return None
    column = obs[setup.library_size_key]
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":
        return column.to_numpy(dtype=np.float32)
    return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(dtype=np.float32)


def writable(adata: AnnData, setup: Setup) -> AnnData:
    """What AnnData can write: chosen cells of a file are read, and names are texts."""
    if rows_of(adata) is not None:
        adata = read_cells_at(adata, setup, np.arange(adata.n_obs))
    if isinstance(adata.obs_names.array, Names):
        adata.obs.index = adata.obs_names.astype(str)
    return adata


def stored_problems(adata: AnnData, setup: Setup) -> list[str]:
    """Every reason why the matrix on disk is not what it was declared to be."""
    where = place(setup.layer)
    try:
        _, facts, totals = stored(adata, setup)
    except DataError as error:
        return [str(error)]
    if found := value_problems(facts.values, setup.matrix_state, where, lambda at: _named(adata, at), lambda: []):
        return found
    if problem := unrecovered_problem(facts.unrecovered, len(facts.totals)):
        return [problem]
    library = library_sizes(adata.obs, setup)
    if library is None or not np.isfinite(library).all():
        return []
    if setup.matrix_state == "log1p" and (none := (library <= 0) & (totals > 0)).any():
        return [f"library_size_key={setup.library_size_key!r} is 0 in {int(none.sum())} cells that have values"]
    if setup.matrix_state == "counts" and (short := library + 0.5 < totals).any():
        return [
            f"library_size_key={setup.library_size_key!r} is smaller than the sum over the genes of the file in {int(short.sum())} cells: "
            "it must count all genes of the cell"
        ]
    return []


def layer_problem(adata: AnnData, layer: str | None) -> str | None:
    """A layer that is not in the file."""
    if layer is None:
        return None
    there = layers_of(adata)
    return None if layer in there else f"layer={layer!r} is not in adata.layers: {near(layer, there)}"


def layers_of(adata: AnnData) -> list[str]:
    """Names of the layers, also of those that stay on disk."""
    on_disk = layers_in(file_of(adata)) if is_on_disk(adata) else []
    return list(dict.fromkeys([*adata.layers, *on_disk]))


def layers_in(path: str | os.PathLike[str]) -> list[str]:
    """Names of the layers of a file."""
    import h5py

    with h5py.File(path, "r") as handle:
        return list(handle.get("layers", ()))


def stored_remarks(adata: AnnData, setup: Setup) -> list[str]:
    """What does not stop a fit; of a matrix on disk without problems."""
    _, facts, totals = stored(adata, setup)
    return sparse_remarks(adata, np.flatnonzero(totals == 0), facts.constant())


def _named(adata: AnnData, at: tuple[int, int]) -> str:
    """Cell and gene of a position in the file, in words."""
    rows = rows_of(adata)
    if rows is None:
        return named(adata, at)
    here = np.flatnonzero(rows == at[0])
    return named(adata, (int(here[0]), at[1])) if len(here) else f"row {at[0]} of the file, gene {adata.var_names[at[1]]!r}"
