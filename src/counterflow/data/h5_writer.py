"""An h5ad file written a block of cells at a time: as many as there are, in the memory of one block.

It has its name only when it is whole; until then it is a hidden file beside it, which is removed where writing fails.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

SMALL: dict[str, Any] = {"compression": "gzip", "compression_opts": 2}
FAST: dict[str, Any] = {"compression": "lzf"}
_CHUNK = 2**16  # values stored together
_ROWS = 64  # of a dense layer stored together


class H5Writer:
    """Blocks of AnnData with the same genes, columns and layers, one below the other.

    Parameters
    ----------
    path
        The file.
    compression
        ``SMALL`` to keep it, ``FAST`` for what is soon read again.

    Examples
    --------
    >>> with H5Writer("cells.h5ad") as file:  # doctest: +SKIP
    ...     for block in model.predict_in_blocks(conditions="KLF1"):
    ...         file.add(block)
    """

    def __init__(self, path: str | os.PathLike[str], *, compression: dict[str, Any] = SMALL) -> None:
        self.path, self._compression = Path(path), compression
        self.n_cells = 0
        self._partial = self.path.parent / f".{self.path.name}.tmp-{os.getpid()}"
        self._matrices: dict[str, _Sparse | _Dense] = {}
        self._columns: dict[str, _Column] = {}
        self._file: Any = None

    def __enter__(self) -> H5Writer:
        import h5py

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._partial, "w")
        return self

    def add(self, block: AnnData) -> None:
        """Write these cells below those of before."""
        if not self._columns:
            self._begin(block)
        if list(block.obs.columns) != list(self._columns)[1:] or block.n_vars != self._n_genes:
            raise DataError(f"cells {self.n_cells} and on have other columns or genes than those before: they do not go into one file")
        self._columns[_INDEX].add(block.obs_names.to_series())
        for name in block.obs.columns:
            self._columns[name].add(block.obs[name])
        for name, matrix in _matrices(block).items():
            self._matrices[name].add(matrix)
        self.n_cells += block.n_obs

    def _begin(self, block: AnnData) -> None:
        from anndata.io import write_elem

        self._n_genes = block.n_vars
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(self._file, "var", block.var)
        write_elem(self._file, "uns", dict(block.uns))
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(self._file, name, {})
        obs = self._file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": _INDEX})
        obs.attrs["column-order"] = np.array(list(block.obs.columns), dtype=object) if len(block.obs.columns) else np.array([], dtype="S1")
        packed, self._columns = self._compression, {}
        self._columns[_INDEX] = _Column(obs, _INDEX, block.obs_names.to_series(), packed, levels=False)
        for name in block.obs.columns:
            self._columns[name] = _Column(obs, name, block.obs[name], packed, levels=_repeats(block.obs[name]))
        for name, matrix in _matrices(block).items():
            self._matrices[name] = (_Sparse if sparse.issparse(matrix) else _Dense)(self._file, name, block.n_vars, matrix.dtype, packed)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._columns:
                for part in (*self._columns.values(), *self._matrices.values()):
                    part.finish(self.n_cells)
                self._file.flush()
                self._file.close()
                with self._partial.open("rb") as handle:
                    os.fsync(handle.fileno())
                os.replace(self._partial, self.path)
        finally:
            try:
                self._file.close()
            except (OSError, RuntimeError):  # a full disk is told by what failed first
                pass
            self._partial.unlink(missing_ok=True)


_INDEX = "_index"


def _matrices(block: AnnData) -> dict[str, Any]:
    return {"X": block.X, **{f"layers/{name}": matrix for name, matrix in block.layers.items()}}


def _repeats(column: pd.Series) -> bool:
    """Whether a column of texts has fewer of them than cells, so that levels take less."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    return column.dtype == object and column.nunique() < len(column)


class _Sparse:
    """A growing CSR matrix."""

    def __init__(self, file: Any, name: str, n_genes: int, dtype: np.dtype, packed: dict[str, Any]) -> None:
        self._group = file.create_group(name)
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        self._data = _growing(self._group, "data", dtype, packed)
        self._indices = _growing(self._group, "indices", np.dtype("i4"), packed)
        self._n_genes, self._lengths = n_genes, [np.zeros(1, dtype=np.int64)]

    def add(self, matrix: sparse.csr_matrix) -> None:
        _append(self._data, matrix.data)
        _append(self._indices, matrix.indices)
        self._lengths.append(np.diff(matrix.indptr).astype(np.int64))

    def finish(self, n_cells: int) -> None:
        indptr = np.cumsum(np.concatenate(self._lengths))
        self._group.create_dataset("indptr", data=indptr.astype(np.int32) if indptr[-1] < 2**31 else indptr)
        self._group.attrs["shape"] = (n_cells, self._n_genes)


class _Dense:
    """A growing dense matrix."""

    def __init__(self, file: Any, name: str, n_genes: int, dtype: np.dtype, packed: dict[str, Any]) -> None:
        self._data = file.create_dataset(name, (0, n_genes), dtype, maxshape=(None, n_genes), chunks=(_ROWS, n_genes), **packed)
        self._data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def add(self, matrix: np.ndarray) -> None:
        _append(self._data, matrix)

    def finish(self, n_cells: int) -> None:
        assert len(self._data) == n_cells


class _Column:
    """A growing column: texts, levels of texts, or numbers."""

    def __init__(self, obs: Any, name: str, first: pd.Series, packed: dict[str, Any], *, levels: bool) -> None:
        import h5py

        self._levels: dict[str, int] | None = {} if levels else None
        self._is_text = levels or first.dtype == object or name == _INDEX
        if self._levels is not None:
            self._group = obs.create_group(name)
            self._group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            self._values = _growing(self._group, "codes", np.dtype("i4"), packed)
            self._values.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        else:
            kind = h5py.string_dtype() if self._is_text else first.dtype
            self._values = _growing(obs, name, kind, packed)
            encoding = "string-array" if self._is_text else "array"
            self._values.attrs.update({"encoding-type": encoding, "encoding-version": "0.2.0"})

    def add(self, column: pd.Series) -> None:
        if self._levels is None:
            _append(self._values, column.astype(str).to_numpy(dtype=object) if self._is_text else column.to_numpy())
            return
        codes, found = pd.factorize(column)
        known = [self._levels.setdefault(str(level), len(self._levels)) for level in found]
        _append(self._values, np.array([*known, -1], dtype=np.int32)[codes])

    def finish(self, n_cells: int) -> None:
        from anndata.io import write_elem

        assert len(self._values) == n_cells
        if self._levels is not None:
            write_elem(self._group, "categories", np.array(list(self._levels), dtype=object))


def _growing(group: Any, name: str, dtype: Any, packed: dict[str, Any]) -> Any:
    return group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,), **packed)


def _append(dataset: Any, values: np.ndarray) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values
