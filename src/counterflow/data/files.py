"""Reading h5ad files, with errors a person can act on."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import sparse

from counterflow.data.matrix import structure_problem
from counterflow.errors import DataError, near

if TYPE_CHECKING:
    from anndata import AnnData

_MOST_PACKED = 2000  # gzip packs a thousand zeros into a byte; nothing that is written packs better
_OWN_FILTERS = 255  # numbers of HDF5's own compressions; zstd packs a few times better than these
_LONGEST_NAME = 10_000  # letters
_LONGEST = 1800.0  # seconds that a look at a file may take, on however slow a disk
FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}
"""Compressions of HDF5 that need the package hdf5plugin, by their registered numbers."""


def read_h5ad(path: str | os.PathLike[str]) -> AnnData:
    """Read an AnnData file into memory.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated, not an h5ad file, compressed in a way that cannot be read here, or damaged.
    """
    import anndata

    file, shown = Path(path), repr(os.fspath(path))
    check_h5ad(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adata = anndata.read_h5ad(file)
        except Exception as error:
            raise DataError(_why_not_read(error, file, shown)) from error
    for name, longest in _name_lengths(adata):
        if longest > _LONGEST_NAME:
            raise DataError(f"{name} in {shown} holds a name of {longest:,} letters: the file is damaged; copy it again")
    for name, matrix in _sparse_matrices(adata):
        if broken := structure_problem(matrix):
            raise DataError(f"{name} in {shown} is a damaged sparse matrix: {broken}; copy the file again, or write it from its source")
    return adata


def check_h5ad(path: str | os.PathLike[str]) -> None:
    """Raise DataError for a file that cannot be an h5ad file, or must not be opened in this process.

    A damaged file can crash the HDF5 library or keep it busy forever, so it is looked through in a process of its own first
    (`counterflow.data.h5probe`): about .2 s, and 1 s for each 100 MB of the first of its numbers.
    """
    file, shown = Path(path), repr(os.fspath(path))
    _check_there(file, shown)
    import h5py

    if h5py.is_hdf5(file):
        _probe(file, shown)
    try:
        with h5py.File(file, "r") as handle:
            if "X" not in handle and "layers" not in handle:
                raise DataError(f"{shown} is an HDF5 file, but holds no AnnData (no X, no layers)")
            for table in ("obs", "var"):  # without one, names would be made up
                if table not in handle:
                    raise DataError(f"{shown} is an HDF5 file, but holds no whole AnnData (no {table}): copy it again")
            _check_sizes(handle, file.stat().st_size, shown)
            _check_filters(handle, shown)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py has many words for a damaged file
        raise DataError(_why_not_opened(error, file.stat().st_size, shown)) from None


def _probe(file: Path, shown: str) -> None:
    """Let another process look through the file; if it does not come back, neither would this one."""
    if not sys.executable:  # Python inside another program: there is nothing to start
        return
    script = str(Path(__file__).with_name("h5probe.py"))
    path = os.path.abspath(file)  # a name that begins with - is no option
    try:
        ended = subprocess.run([sys.executable, "-P", script, path], capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"{shown} is damaged: reading it does not end; copy it again") from None
    except OSError:  # no process can be started here
        return
    said = ended.stdout.splitlines()
    if said[:1] != ["started"] or said == ["started", "done"]:
        return
    if said[-1] == "done":
        raise DataError(f"{shown} is damaged, or was made to mislead: {said[1]}; write it again from its source")
    endless = -ended.returncode in (getattr(signal, "SIGXCPU", 0), getattr(signal, "SIGKILL", 0))
    what = "reading it does not end" if endless else "reading it crashes the HDF5 library"
    raise DataError(f"{shown} is damaged: {what}; copy it again")


def _name_lengths(adata: AnnData) -> Iterator[tuple[str, int]]:
    """Letters of the longest name in every column of text; as an array every cell would take as much."""
    for table, frame in (("obs", adata.obs), ("var", adata.var)):
        for column in [None, *frame.columns]:
            values = frame.index if column is None else frame[column]
            names = values.cat.categories if column is not None and hasattr(values, "cat") else values
            if names.dtype.kind == "O" or str(names.dtype).startswith("str"):
                where = f"the names of {table}" if column is None else f"{table}[{column!r}]"
                yield where, max((len(name) for name in names if isinstance(name, str)), default=0)


def _sparse_matrices(adata: AnnData) -> Iterator[tuple[str, Any]]:
    """Every sparse matrix of an AnnData in memory, with its name."""
    places = {f"layers[{name!r}]": matrix for name, matrix in adata.layers.items()} | {"X": adata.X}
    for axis in ("obsm", "varm", "obsp", "varp"):
        places |= {f"{axis}[{name!r}]": matrix for name, matrix in getattr(adata, axis).items()}
    if adata.raw is not None:
        places["raw.X"] = adata.raw.X
    yield from ((name, matrix) for name, matrix in places.items() if sparse.issparse(matrix))


def _check_there(file: Path, shown: str) -> None:
    """Refuse what is no file with content."""
    try:
        if file.is_dir():
            raise DataError(f"{shown} is a directory: give one .h5ad file")
        if not file.exists():
            raise DataError(f"{shown} does not exist{_near_files(file)}")
        size = file.stat().st_size
    except (OSError, ValueError) as error:  # names that are too long, or hold a null character
        raise DataError(f"{shown} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if size == 0:
        raise DataError(f"{shown} is not an h5ad file (0 bytes): copy it again")


def _near_files(file: Path) -> str:
    if not file.parent.is_dir():
        return f": there is no folder {os.fspath(file.parent)!r}"
    here = sorted(other.name for other in file.parent.iterdir() if other.name.endswith(".h5ad"))
    return f": {near(file.name, here)}" if here else f", and no .h5ad file is in {os.fspath(file.parent)!r}"


def _why_not_opened(error: Exception, size: int, shown: str) -> str:
    text = str(error)
    if "truncated" in text:
        whole = re.search(r"stored_eof = (\d+)", text)
        of = f" of {int(whole[1]) / 1e6:.3g} MB" if whole else " MB"
        return f"{shown} is truncated ({size / 1e6:.3g}{of}): copy it again"
    if "signature not found" in text:
        return f"{shown} is not an h5ad file ({size:,} bytes of something else)"
    return f"{shown} is not an h5ad file, or is damaged ({_first_line(error)})"


def _check_sizes(handle: Any, size: int, shown: str) -> None:
    """A damaged size makes reading last forever, or fill the memory."""
    for name, dataset in _datasets(handle):
        plan = dataset.id.get_create_plist()
        plugin = any(plan.get_filter(i)[0] > _OWN_FILTERS for i in range(plan.get_nfilters()))
        stored = min(dataset.id.get_storage_size(), size)
        if (dataset.size or 0) * dataset.dtype.itemsize > (20 if plugin else 1) * _MOST_PACKED * max(stored, 2**16):
            raise DataError(f"{shown} is damaged: {name} claims {dataset.size:,} values, more than {size:,} bytes can hold; copy it again")


def _check_filters(handle: Any, shown: str) -> None:
    """Every compression in the file must be known here, else reading stops in the middle with a message about a plugin folder."""
    import h5py

    for name, dataset in _datasets(handle):
        plan = dataset.id.get_create_plist()
        for i in range(plan.get_nfilters()):
            number = plan.get_filter(i)[0]
            if not h5py.h5z.filter_avail(number) and not _plugin_provides(number):
                kind = FILTERS.get(number, f"HDF5 filter {number}")
                advice = "pip install 'counterflow[big]'" if number in FILTERS else "write the file again without it"
                raise DataError(f"{shown} is compressed with {kind} ({name}), which cannot be read here: {advice}")


def _plugin_provides(number: int) -> bool:
    """Whether hdf5plugin is there and knows the filter; importing it registers its filters."""
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        return False
    import h5py

    return bool(h5py.h5z.filter_avail(number))


def _datasets(handle: Any) -> list[tuple[str, Any]]:
    """Name and dataset of everything in a file, each once; where the walk breaks off, reading will say why."""
    import h5py

    found: list[tuple[str, Any]] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    try:
        handle.visititems(note)
    except (KeyError, OSError, RuntimeError, ValueError, UnicodeError):
        pass
    return found


def _why_not_read(error: Exception, file: Path, shown: str) -> str:
    for cause in _chain(error):
        if isinstance(cause, UnicodeDecodeError):
            return f"{shown} holds a name that is not UTF-8 text{_undecodable(file)}: write it again with encoding='utf-8'"
    last = _chain(error)[-1]
    return f"{shown} cannot be read ({type(last).__name__}: {_first_line(last)}): the file is damaged or incomplete"


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _undecodable(file: Path) -> str:
    """Column and row of the first name that is not UTF-8."""
    import h5py

    with h5py.File(file, "r") as handle:
        for name, dataset in _datasets(handle):
            if h5py.check_string_dtype(dataset.dtype) is None:
                continue
            for row, value in enumerate(dataset[()].ravel() if dataset.ndim else [dataset[()]]):
                try:
                    bytes(value).decode("utf-8")
                except UnicodeDecodeError:
                    return f" ({_column(name)}, row {row}: {bytes(value)!r})"
    return ""


def _column(name: str) -> str:
    """What anndata calls a dataset: obs/gene/categories is the column 'gene' of obs."""
    table, _, rest = name.partition("/")
    column = rest.removesuffix("/categories").removesuffix("/codes")
    if table in ("obs", "var"):
        return f"the names of {table}" if column in ("_index", "index") else f"column {column!r} of {table}"
    return repr(name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
