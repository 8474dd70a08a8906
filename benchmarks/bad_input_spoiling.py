"""How a good screen is spoilt, and what a case of `bad_input_table.py` is.

A case spoils a small good screen (or the file it is kept in, or the command), and says what must come of it: refused with words, accepted
with a warning, or accepted as if nothing were wrong. Rows are numbered as in the table of bad inputs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.data.files import read_h5ad
from counterflow.data.simulate import SMALL
from counterflow.errors import CounterflowError, DataError

ROWS = (
    "NaN or infinite values", "negative values", "log1p where counts are declared", "counts where log1p is declared",
    "integers, booleans, float64", "text or objects as X", "stored by genes (CSC)", "dense, backed, a view",
    "unsorted or duplicate entries", "corrupt indices", "cells without a count", "constant genes", "duplicate gene names",
    "duplicate cell names", "missing layer or column", "no control, or none in a context", "labels that are numbers or booleans",
    "missing labels", "groups smaller than a set", "nothing to split, or a split without controls", "unseen perturbation",
    "genes of the cells are not the model's", "Ensembl ids and symbols", "empty, text, missing, a folder", "truncated file",
    "compression that cannot be read", "names that are not UTF-8", "no cells, no genes", "more than the memory holds",
    "data changed before a resume", "misspelt options", "foreign or newer model.json", "loss that is not finite",
)  # fmt: skip

SETUP = {"perturbation_key": "perturbation", "control": "control"}
TINY: dict[str, Any] = {"anchor": "none", "backbone_kwargs": {"width": 8, "depth": 1}, "encoder_kwargs": {"width": 8}}
TINY |= {"space_kwargs": {"n_components": 4}}
TINY_FLAGS = ["--model.anchor", "none", "--model.space_kwargs.n_components", "4", "--train.max_steps", "1", "--train.batch_size", "64"]
FILTER = 32015  # zstd; one that nobody registered where hdf5plugin is installed
REFUSED, WARNED, ACCEPTED = "refused", "warned", "accepted"


@dataclass(frozen=True)
class Scene:
    """Where a case is played."""

    folder: Path
    adata: AnnData
    case: "Case"

    @property
    def file(self) -> Path:
        """The spoilt file."""
        return self.folder / "screen.h5ad"

    @property
    def out(self) -> Path:
        """Where a command may write."""
        return self.folder / "out" / "result"


def fit_in_python(scene: Scene) -> None:
    """The whole way of the Python face, from the AnnData to a step of training."""
    adata = cf.read_h5ad(scene.file) if scene.case.file else scene.adata
    cf.CounterFlow.setup_anndata(adata, **(SETUP | scene.case.setup))
    cf.CounterFlow(adata, **TINY).train(max_steps=1, batch_size=64, progress=False)


def fit_command(scene: Scene) -> list[str]:
    """The same on the command line."""
    setup = SETUP | scene.case.setup
    written = {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in setup.items()}
    flags = [word for name, value in written.items() for word in (f"--setup.{name}", value)]
    return ["fit", str(scene.file), *flags, *TINY_FLAGS, "--out", str(scene.out), *scene.case.flags]


@dataclass(frozen=True)
class Case:
    """One bad input."""

    row: int
    name: str
    outcome: str
    says: tuple[str, ...] = ()
    spoil: Callable[[AnnData], AnnData | None] = lambda adata: None
    setup: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # of the command, besides
    file: Callable[[Path], None] | None = None  # spoils the file in which the good screen is kept
    python: Callable[[Scene], object] = fit_in_python
    command: Callable[[Scene], list[str]] = fit_command
    error: type[CounterflowError] = DataError
    keeps: tuple[str, ...] = ()  # what a refused command may leave, besides nothing
    same: bool = False  # the command must read the numbers of the good screen, to the bit


@cache
def screen() -> AnnData:
    """The good screen."""
    return cf.simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3}, seed=0).adata


@cache
def trained() -> Path:
    """A model that was fitted on it."""
    adata, folder = screen().copy(), Path(mkdtemp(prefix="bad_inputs_")) / "model"
    cf.CounterFlow.setup_anndata(adata, **SETUP)
    model = cf.CounterFlow(adata, **TINY)
    model.train(max_steps=1, batch_size=64, progress=False)
    model.save(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------- spoiling an AnnData


def set_value(value: float) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        adata.X.data[5] = value

    return spoil


def log1p(adata: AnnData) -> None:
    adata.X.data = np.log1p(adata.X.data * 3.7)


def negative_log1p(adata: AnnData) -> None:
    log1p(adata)
    set_value(-1.0)(adata)


def counts_elsewhere(adata: AnnData) -> None:
    adata.layers["raw_counts"] = adata.X.copy()
    log1p(adata)


def as_type(kind: str) -> Callable[[AnnData], None]:
    return lambda adata: setattr(adata, "X", adata.X.astype(kind))


def in_column(column: str, value: object, rows: slice = slice(0, 7)) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        values = adata.obs[column].astype(object)
        values.iloc[rows] = value
        adata.obs[column] = values

    return spoil


def shuffled_entries(adata: AnnData) -> None:
    """Every row in reverse order, its last entry split into two."""
    x, data, indices, indptr = adata.X, [], [], [0]
    for row in range(x.shape[0]):
        columns = x.indices[x.indptr[row] : x.indptr[row + 1]][::-1].tolist()
        values = x.data[x.indptr[row] : x.indptr[row + 1]][::-1].tolist()
        if values and values[-1] > 1:
            values[-1], columns, values = values[-1] - 1, [*columns, columns[-1]], [*values[:-1], values[-1] - 1, 1.0]
        data, indices = [*data, *values], [*indices, *columns]
        indptr.append(len(indices))
    adata.X = sparse.csr_matrix((np.array(data, dtype=np.float32), np.array(indices), np.array(indptr)), shape=x.shape)


def empty_cells(adata: AnnData) -> None:
    keep = np.ones(adata.n_obs, dtype=np.float32)
    keep[:3] = 0
    adata.X = sparse.csr_matrix(sparse.diags(keep) @ adata.X)
    adata.X.eliminate_zeros()


def constant_genes(adata: AnnData) -> None:
    dense = adata.X.toarray()
    dense[:, 4], dense[:, 5] = 0, 3
    adata.X = sparse.csr_matrix(dense)


def relabel(kind: Callable[[pd.Series], Any]) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        adata.obs["perturbation"] = kind(adata.obs["perturbation"].astype(str))

    return spoil


def numbered(labels: pd.Series) -> np.ndarray:
    names = ["control", *sorted(set(labels) - {"control"})]
    return labels.map({name: i for i, name in enumerate(names)}).to_numpy()


def without(where: Callable[[pd.DataFrame], Any]) -> Callable[[AnnData], AnnData]:
    return lambda adata: adata[~np.asarray(where(adata.obs), dtype=bool)].copy()


def controls_of(kind: str) -> Callable[[pd.DataFrame], Any]:
    return lambda obs: (obs["perturbation"] == "control") & (obs["cell_type"] == kind)


def only(*labels: str) -> Callable[[AnnData], AnnData]:
    return lambda adata: adata[adata.obs["perturbation"].isin(labels)].copy()


def one_cell_group(adata: AnnData) -> AnnData:
    first = adata.obs_names[adata.obs["perturbation"] == screen_labels()[0]]
    return adata[~adata.obs_names.isin(first[1:])].copy()


def screen_labels() -> list[str]:
    return sorted(set(screen().obs["perturbation"]) - {"control"})


def controls_in_test(adata: AnnData) -> None:
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "test", "train")


# ------------------------------------------------------------------------------------------------------------- spoiling a file


def edit(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as handle:
            values = handle[name][()]
            change(values)
            handle[name][...] = values

    return spoil


def beyond(values: np.ndarray) -> None:
    values[3] = 9999


def backwards(values: np.ndarray) -> None:
    values[5] = values[9] + 1


def text_matrix(path: Path) -> None:
    adata = read_h5ad(path)
    with h5py.File(path, "a") as handle:
        del handle["X"]
        words = handle.create_dataset("X", data=adata.X.toarray().astype("S"), dtype=h5py.string_dtype())
        words.attrs["encoding-type"], words.attrs["encoding-version"] = "string-array", "0.2.0"


def dense_file(path: Path) -> None:
    adata = read_h5ad(path)
    adata.X = adata.X.toarray()
    adata.write_h5ad(path)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def text_file(path: Path) -> None:
    path.write_text("gene,count\n")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable_filter(path: Path) -> None:
    """The matrix, dense, in one chunk that says it was compressed with a filter that is not here."""
    number = FILTER if not h5py.h5z.filter_avail(FILTER) else 480
    with h5py.File(path, "a") as handle:
        del handle["X"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 4))
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((4, 4))
        h5py.h5d.create(handle.id, b"X", h5py.h5t.IEEE_F32LE, space, plan).write_direct_chunk((0, 0), b"no zstd frame", 0)
        handle["X"].attrs["encoding-type"], handle["X"].attrs["encoding-version"] = "array", "0.2.0"


def latin1(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as handle:
            values = np.array([bytes(value) for value in handle[name][()]], dtype=object)
            values[1] = "Ménière".encode("latin-1")
            attributes = dict(handle[name].attrs)
            del handle[name]
            handle.create_dataset(name, data=values, dtype=h5py.string_dtype()).attrs.update(attributes)

    return spoil
