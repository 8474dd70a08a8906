"""`doctor(adata)`: recognises how a file is labelled, lists what is wrong with it, and writes the declaration to paste.

It looks at names and values, changes nothing, and trains nothing. It proposes; you decide.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import numpy as np

from counterflow.data.file_rows import file_of
from counterflow.data.labels import parts
from counterflow.data.matrix import raw_matrix
from counterflow.data.remarks import remarks
from counterflow.data.schema import Setup, general_problems, listed, problems
from counterflow.data.stored import is_stored, layers_in, open_h5ad, size_on_disk
from counterflow.diagnosis.columns import COLUMN_NAMES, SPLIT_LEVELS, candidates, level_counts, named
from counterflow.diagnosis.contents import usable_layer
from counterflow.diagnosis.controls import perturbation_column
from counterflow.diagnosis.labelings import labeling_of
from counterflow.diagnosis.proposal import declaration, suggest_split
from counterflow.diagnosis.report import Diagnosis
from counterflow.errors import DataError
from counterflow.footprint import SHARE, cells_in_memory, describe_time, footprint, free_memory

if TYPE_CHECKING:
    from anndata import AnnData


def doctor(adata: AnnData | str | os.PathLike[str]) -> Diagnosis:
    """Recognise how a screen is labelled, list what is wrong with it, and propose a declaration and a split.

    Parameters
    ----------
    adata
        An AnnData, or the path of an h5ad file. Nothing is changed.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    path = "screen.h5ad"
    if isinstance(adata, str | os.PathLike):
        path = os.fspath(adata)
        adata = _read_or_open(path)
    columns = {role: candidates(adata.obs, role) for role in COLUMN_NAMES}
    layer, state, matrix, notes = usable_layer(adata)
    key, controls = perturbation_column(adata.obs, columns["perturbation"])
    if key is None or not controls:
        labels = {} if key is None else level_counts(adata.obs[key])
        found = general_problems(adata, layer, state)
        return Diagnosis(
            adata.n_obs, adata.n_vars, matrix, columns, {}, labels, 0, None, None, problems=tuple(found), notes=tuple(notes), path=path
        )
    columns["perturbation"] = [key, *(name for name in columns["perturbation"] if name != key)]
    control = next(iter(controls))
    setup, reasons = declaration(adata, columns, key, control, layer, state)
    everything = level_counts(adata.obs[key])
    labels = {name: n for name, n in everything.items() if parts(name, setup.delimiter, control)}
    combinations = sum(len(parts(name, setup.delimiter, control)) > 1 for name in labels)
    found = problems(adata, setup)
    notes += [*reasons, *_notes(adata, setup, controls, labels), *([] if found else remarks(adata, setup))]
    return Diagnosis(
        adata.n_obs, adata.n_vars, matrix, columns, controls, labels, combinations, setup,
        split=None if found or setup.split_key else suggest_split(adata.obs, setup),
        labeling=labeling_of(adata.obs.columns, key, control, everything),
        needs=_needs(adata, layer), problems=tuple(found), notes=tuple(notes), path=path,
    )  # fmt: skip


def _read_or_open(path: str) -> AnnData:
    """The file in memory, or looked through a block at a time where its matrices are large."""
    from counterflow.data.files import check_h5ad, read_h5ad

    check_h5ad(path)
    needed, free = cells_in_memory(sum(size_on_disk(path, layer) for layer in (None, *layers_in(path)))), free_memory()
    return read_h5ad(path) if free is None or needed <= SHARE * free else open_h5ad(path)


def _needs(adata: AnnData, layer: str | None) -> str:
    """Memory and time of a fit with the defaults."""
    if is_stored(adata, layer):
        n_values = size_on_disk(file_of(adata), layer)
    else:
        try:
            matrix = raw_matrix(adata, layer)
        except DataError:
            return ""
        n_values = int(np.count_nonzero(matrix)) if isinstance(matrix, np.ndarray) else int(matrix.nnz)
    size = footprint(adata.n_obs, adata.n_vars, n_values, space="pca", state_size=50)
    return f"{size} and {describe_time(adata.n_obs, adata.n_vars, n_values)}, with the defaults"


def _notes(adata: AnnData, setup: Setup, controls: dict[str, int], labels: dict[str, int]) -> list[str]:
    """What will not stop a fit, but changes what it means."""
    notes = []
    if len(controls) > 1:
        others = ", ".join(map(repr, list(controls)[1:4]))
        notes.append(
            f"several labels look like controls; {setup.control!r} was taken, {others} count as perturbations. If they are controls: "
            f"adata.obs[{setup.perturbation_key!r}] = adata.obs[{setup.perturbation_key!r}].astype(str).replace("
            f"{dict.fromkeys(list(controls)[1:], setup.control) if len(controls) < 6 else '{...}'})"
        )
    small = [name for name, n in labels.items() if n < 30]
    if small:
        notes.append(
            f"{len(small)} of {len(labels)} conditions have fewer than 30 cells ({', '.join(small[:3])}): scores on these are noise"
        )
    n_control = sum(n for name, n in level_counts(adata.obs[setup.perturbation_key]).items() if name not in labels)
    if n_control < 100:
        notes.append(f"only {n_control} control cells: every effect is measured against them, and every prediction starts from one")
    for role in ("dose", "time"):
        for column in (name for name in named(adata.obs, role) if name not in candidates(adata.obs, role)):
            levels = adata.obs[column].dropna().unique()
            notes.append(f"{column!r} looks like a {role}, but does not hold numbers >= 0 everywhere (such as {listed(levels)})")
    for column in named(adata.obs, "split"):
        odd = sorted(set(adata.obs[column].astype(str)) - SPLIT_LEVELS)
        if odd and "train" in set(adata.obs[column].astype(str)):
            notes.append(f"{column!r} looks like a split, but holds {listed(odd)}: rename to train, val and test to use it as split_key")
    spread = float(np.mean([bool(re.match(r"ENS[A-Z]*G\d", name)) for name in adata.var_names[:1000]])) if adata.n_vars else 0.0
    measured = {name for label in labels for name in parts(label, setup.delimiter, setup.control)} & set(adata.var_names)
    if spread > 0.5:
        notes.append("genes are Ensembl ids: perturbations named by symbol find no feature row under 'coexpression'")
    elif not measured and not setup.dose_key:
        notes.append("no perturbed gene is among the measured genes: unseen perturbations have no coexpression features")
    return notes
