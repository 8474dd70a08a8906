"""What a matrix holds: counts, log1p, or what else it looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from counterflow.data.file_rows import file_of
from counterflow.data.h5_store import H5Store
from counterflow.data.matrix import raw_matrix
from counterflow.data.schema import Setup
from counterflow.data.stored import is_stored, layers_of, stored
from counterflow.data.values import Values
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

State = Literal["counts", "log1p"]


def usable_layer(adata: AnnData) -> tuple[str | None, State, str, list[str]]:
    """Layer, matrix state, both in words, and notes; counts are preferred to log1p wherever they are."""
    kinds = {layer: kind_of(adata, layer) for layer in (None, *layers_of(adata))}
    words = ", ".join(f"{'X' if layer is None else f'layers[{layer!r}]'}: {kind}" for layer, kind in kinds.items())
    notes = []
    if adata.raw is not None:
        notes.append("adata.raw is there too; counterflow does not read it: copy it into a layer if it holds the counts")
    state: State
    for state in get_args(State):
        for layer, kind in kinds.items():
            if kind == state:
                return layer, state, words, notes
    return None, "counts", words, notes


def kind_of(adata: AnnData, layer: str | None) -> str:
    """counts, log1p, or what else it looks like."""
    try:
        values, n_values = _on_disk(adata, layer) if is_stored(adata, layer) else _in_memory(adata, layer)
    except DataError as error:
        return "damaged" if "damaged" in str(error) else "nothing"
    except _NoNumbersError as error:
        return f"dtype {error}"
    if not n_values or values.n_missing:
        return "has NaN or infinite values" if n_values else "empty"
    if values.n_negative:
        return "scaled or centred (negative values)"
    if not values.n_fractional:
        return "counts" if values.largest > 0 else "only zeros"
    return "log1p" if values.largest <= 30 else "normalised, not logarithmic"


class _NoNumbersError(Exception):
    """A matrix of something else; says of what."""


def _in_memory(adata: AnnData, layer: str | None) -> tuple[Values, int]:
    matrix, values = raw_matrix(adata, layer), Values()
    _check_numbers(matrix.dtype)
    values.add(matrix)
    return values, matrix.size


def _on_disk(adata: AnnData, layer: str | None) -> tuple[Values, int]:
    store = H5Store(file_of(adata), layer, "counts")
    _check_numbers(store.dtype)
    return stored(adata, Setup("", "", layer=layer)).facts.values, store.n_values


def _check_numbers(dtype: np.dtype) -> None:
    if not (np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.bool_)):
        raise _NoNumbersError(dtype)
