"""Reading h5ad files, with errors a person can act on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from counterflow.errors import DataError, near

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(path: str | os.PathLike[str]) -> AnnData:
    """Read an AnnData file into memory.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated, or not an h5ad file.
    """
    file = Path(path)
    shown = repr(os.fspath(path))
    if not file.exists():
        here = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        raise DataError(f"{shown} does not exist: {near(file.name, sorted(name for name in here if name.endswith('.h5ad')))}")
    if file.is_dir():
        raise DataError(f"{shown} is a directory: give one .h5ad file")
    size = file.stat().st_size
    if size == 0:
        raise DataError(f"{shown} is not an h5ad file (0 bytes): copy it again")
    import anndata
    import h5py

    try:
        with h5py.File(file, "r") as handle:
            if "X" not in handle and "layers" not in handle:
                raise DataError(f"{shown} is an HDF5 file, but holds no AnnData (no X, no layers)")
    except OSError as error:
        if "truncated" in str(error):
            raise DataError(f"{shown} is truncated ({size / 1e6:.1f} MB): copy it again") from None
        raise DataError(f"{shown} is not an h5ad file ({error})") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return anndata.read_h5ad(file)
        except Exception as error:
            raise DataError(
                f"{shown} cannot be read ({type(error).__name__}: {_first_line(error)}): the file is damaged or incomplete"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
