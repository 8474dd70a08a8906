"""Damaged h5ad files: bytes of a plain and of a compressed file, and structures that HDF5 accepts and an AnnData never has."""

import pickle
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fuzz_bytes
import h5py
import numpy as np

SETUP = {"perturbation_key": "perturbation", "control": "control", "match_keys": ["cell_type"]}
SPARSE = ("X", "layers/counts")


@lru_cache(maxsize=1)
def screen() -> Any:
    """A screen with something in every part of an AnnData."""
    from counterflow import simulate_screen

    size = {"n_genes": 40, "n_perturbations": 3, "n_pairs": 2, "cells_control": 90, "cells_per_condition": 20, "n_cell_types": 2}
    adata = simulate_screen(**size, seed=1).adata
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    adata.uns["notes"] = {"by": "somebody", "numbers": np.arange(5)}
    return adata


def prepare(folder: Path) -> None:
    """The two files that are damaged."""
    screen().write_h5ad(folder / "plain.h5ad")
    screen().write_h5ad(folder / "gzip.h5ad", compression="gzip")


def attempt(file: Path) -> str:
    """Read, declare and look at a file; a digest of what the rest of the house would see."""
    import counterflow as cf
    from counterflow.data.schema import setup_of
    from counterflow.data.screen import read_screen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = cf.read_h5ad(file)
        cf.doctor(adata)
        cf.CounterFlow.setup_anndata(adata, **SETUP)
        return read_screen(adata, setup_of(adata)).fingerprint


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _everything(handle: h5py.File, kind: type) -> list[str]:
    found: list[str] = []
    handle.visititems(lambda name, item: found.append(name) if isinstance(item, kind) else None)
    return found


def _replace(handle: h5py.File, name: str, value: Any) -> None:
    kept = dict(handle[name].attrs)
    del handle[name]
    handle[name] = value
    handle[name].attrs.update(kept)


def missing(rng: np.random.Generator, handle: h5py.File) -> None:
    del handle[_pick(rng, ["X", "obs", "var", "obs/perturbation", "obs/cell_type", "obs/perturbation/codes", "X/indices", "X/indptr",
                           "X/data", "obs/perturbation/categories", "obs/_index", "var/_index"])]  # fmt: skip


def missing_anything(rng: np.random.Generator, handle: h5py.File) -> None:
    del handle[_pick(rng, [*_everything(handle, h5py.Dataset), *_everything(handle, h5py.Group)])]


def pointers(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, SPARSE) + "/indptr"
    values = handle[name][()]
    i = int(rng.integers(1, len(values) - 1))
    values[i] = _pick(rng, [values[-1] + 5, -1, 2**31 - 1, -(2**31), values[i + 1] + 1])
    handle[name][...] = values


def last_pointer(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, SPARSE) + "/indptr"
    handle[name][-1] = _pick(rng, [2**31 - 1, -1, handle[name][-1] + 1])


def indices(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, SPARSE) + "/indices"
    n = len(handle[name])
    for i in rng.integers(0, n, int(rng.integers(1, 4))):
        handle[name][int(i)] = _pick(rng, [40, 41, 2**31 - 1, -1, -(2**31), 10**6])


def lengths(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, SPARSE) + "/" + _pick(rng, ["data", "indices", "indptr"])
    values = handle[name][()]
    cut = int(rng.integers(1, len(values)))
    _replace(handle, name, _pick(rng, [values[:cut], values[:0], np.concatenate([values, values])]))


def kinds(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, _everything(handle, h5py.Dataset))
    shape = handle[name].shape
    new = [np.zeros(shape, "S3"), np.zeros(shape, "f2"), np.zeros(shape, "c8"), np.full(shape, np.nan), np.zeros(shape, "V4")]
    value = _pick(rng, [*new, np.zeros((*shape, 2)), np.float32(1), h5py.Empty("f4"), np.zeros(shape, [("a", "i4"), ("b", "f4")])])
    _replace(handle, name, value)


def table_lengths(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["obs/_index", "obs/perturbation/codes", "obs/cell_type/codes", "var/_index"])
    _replace(handle, name, handle[name][()][: int(rng.integers(0, 30))])


def codes(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["obs/perturbation/codes", "obs/cell_type/codes"])
    handle[name][int(rng.integers(len(handle[name])))] = _pick(rng, [100, 127, -128, -2, -1])


def attributes(rng: np.random.Generator, handle: h5py.File) -> None:
    item = handle[_pick(rng, ["X", "obs", "var", "obs/perturbation", "layers", "layers/counts", "obs/_index", "uns", "uns/notes"])]
    names = list(item.attrs)
    if not names:
        item.attrs["encoding-type"] = "csr_matrix"
        return
    name = _pick(rng, names)
    wrong = [1, "", "nonsense", np.arange(3), h5py.Empty("f4"), np.nan, "csc_matrix", "array", "dict", "dataframe", "../../etc/passwd"]
    if rng.random() < 0.3:
        del item.attrs[name]
    else:
        item.attrs[name] = _pick(rng, wrong)


def shapes(rng: np.random.Generator, handle: h5py.File) -> None:
    n, g = (int(size) for size in handle["X"].attrs["shape"])
    odd = [(n, g + 1), (n + 1, g), (-1, g), (2**62, 2**62), (n, g - 1), (0, 0), (n,), (n, g, 1), (2**40, g), (n, 2**40)]
    handle[_pick(rng, SPARSE)].attrs["shape"] = np.array(_pick(rng, odd))


def huge(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["X/data", "X/indices", "X/indptr", "obs/perturbation/codes", "obs/_index", "obsm/X_pca"])
    attrs = dict(handle[name].attrs)
    kind = handle[name].dtype
    del handle[name]
    shape = _pick(rng, [(2**40,), (2**33,), (2**31, 2**20), (10**9,)])
    handle.create_dataset(name, shape=shape, dtype=kind, chunks=tuple(min(size, 1000) for size in shape)).attrs.update(attrs)


def external_link(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["X", "layers/counts", "obs/perturbation", "uns/notes", "uns/more", "X/data", "obsm/X_pca", "obs/_index"])
    if name in handle:
        del handle[name]
    handle[name] = h5py.ExternalLink(_pick(rng, ["gzip.h5ad", "/etc/passwd", "nowhere.h5", handle.filename]), name)


def external_storage(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["X/data", "obs/perturbation/codes", "obsm/X_pca", "uns/notes/numbers"])
    old = handle[name]
    shape, kind, attrs = old.shape, old.dtype, dict(old.attrs)
    del handle[name]
    size = int(np.prod(shape)) * kind.itemsize
    handle.create_dataset(name, shape=shape, dtype=kind, external=[("/etc/passwd", 0, size)]).attrs.update(attrs)


def virtual(rng: np.random.Generator, handle: h5py.File) -> None:
    name = _pick(rng, ["X/data", "obs/perturbation/codes", "obsm/X_pca"])
    shape, kind, attrs = handle[name].shape, handle[name].dtype, dict(handle[name].attrs)
    del handle[name]
    layout = h5py.VirtualLayout(shape=shape, dtype=kind)
    layout[...] = h5py.VirtualSource("gzip.h5ad", name, shape=shape)
    handle.create_virtual_dataset(name, layout).attrs.update(attrs)


def cycle(rng: np.random.Generator, handle: h5py.File) -> None:
    inside = _pick(rng, ["uns", "uns/notes", "obs", "layers", "obsm", "X"])
    target = _pick(rng, [inside, "/", "uns"])
    handle[f"{inside}/again"] = h5py.SoftLink(f"/{target.strip('/')}") if rng.random() < 0.5 else handle[target]


def many_ways(rng: np.random.Generator, handle: h5py.File) -> None:
    del rng
    last = handle["uns"].create_group("deep0")
    for _ in range(1, 40):  # 2^40 paths to the last one
        new = last.create_group("a")
        last["b"] = new
        last = new


def deep(rng: np.random.Generator, handle: h5py.File) -> None:
    handle.create_group("uns/" + "/".join("x" * int(rng.integers(200, 3000))))


def text(rng: np.random.Generator, handle: h5py.File, options: tuple[bytes, ...]) -> None:
    name = _pick(rng, ["obs/_index", "var/_index", "obs/perturbation/categories", "obs/cell_type/categories"])
    values = [str(v) for v in handle[name].asstr()[()]]
    coded = [v.encode() for v in values]
    coded[int(rng.integers(len(coded)))] = _pick(rng, options)
    _replace(handle, name, np.array(coded, dtype=h5py.string_dtype()))


def numbers(rng: np.random.Generator, handle: h5py.File) -> None:
    name = "X/data"
    handle[name][int(rng.integers(len(handle[name])))] = _pick(rng, [np.nan, np.inf, -np.inf, -1.0, 0.5, 1e30])


def pickled(rng: np.random.Generator, handle: h5py.File) -> None:
    handle[_pick(rng, ["uns/model", "uns/notes/model", "obsm/model"])] = np.void(pickle.dumps({"a": 1}))


STRUCTURES: dict[str, Callable] = {
    "a needed part is missing": missing,
    "some part is missing": missing_anything,
    "row pointers that go back or out": pointers,
    "last row pointer": last_pointer,
    "indices out of range": indices,
    "arrays of other lengths": lengths,
    "arrays of other kinds": kinds,
    "columns of other lengths": table_lengths,
    "codes without a category": codes,
    "attributes of another kind": attributes,
    "shape of the matrix": shapes,
    "huge declared sizes": huge,
    "links to other files": external_link,
    "values in other files": external_storage,
    "virtual arrays": virtual,
    "groups that hold themselves": cycle,
    "2^40 paths": many_ways,
    "thousands of groups deep": deep,
    "text that is not UTF-8": partial(text, options=(b"\xff\xfe", b"\xed\xa0\x80", b"caf\xe9")),
    "odd names": partial(text, options=(b"a" * 10**6, b"a" * 9000, b"nan", b"../../x", b"a\nb", b"", b"1e400")),
    "values that are no counts": numbers,
    "a pickle inside": pickled,
}


def _bytes(change: Callable, name: str, rng: np.random.Generator, base: Path, target: Path) -> None:
    target.write_bytes((base / name).read_bytes())
    change(rng, target)


def _structure(change: Callable, rng: np.random.Generator, base: Path, target: Path) -> None:
    target.write_bytes((base / "plain.h5ad").read_bytes())
    with h5py.File(target, "a") as handle:
        change(rng, handle)


KINDS: dict[str, Callable] = {
    **{f"plain: {kind}": partial(_bytes, change, "plain.h5ad") for kind, change in fuzz_bytes.KINDS.items()},
    **{f"gzip: {kind}": partial(_bytes, change, "gzip.h5ad") for kind, change in fuzz_bytes.KINDS.items()},
    **{kind: partial(_structure, change) for kind, change in STRUCTURES.items()},
}
FREE_TO_DIFFER = frozenset({"odd names"})  # kinds after which other content is no fault of the reader
NOTES = """Other content was accepted in silence only where bytes were damaged that HDF5 keeps no checksum of: numbers and names in a
file without compression, and in a compressed one what is too small to be compressed. A count or a letter is then another one, and
nothing in the file says so. Files compressed with gzip carry a checksum of nearly all of it; a run keeps a fingerprint of its data and
is resumed and replayed on the same data only."""
OFTEN = {f"gzip: {kind}": 2 for kind in fuzz_bytes.KINDS}
KNOWN = frozenset({("silent", "plain: "), ("silent", "gzip: ")})


def originals(base: Path) -> dict[str, str]:
    """What the sound files give."""
    return {name: attempt(base / name) for name in ("plain.h5ad", "gzip.h5ad")}


def mutate(kind: str, rng: np.random.Generator, base: Path, scratch: Path) -> tuple[Path, str]:
    """A damaged file, and the name of the sound one."""
    target = scratch / "case.h5ad"
    KINDS[kind](rng, base, target)
    return target, "gzip.h5ad" if kind.startswith("gzip") else "plain.h5ad"
