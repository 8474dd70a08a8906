"""The declaration and the split that fit what was recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterflow.data.labels import parts
from counterflow.data.matrix import raw_matrix
from counterflow.data.schema import Setup
from counterflow.data.stored import is_stored, stored
from counterflow.diagnosis.columns import amounts, level_counts, numbers
from counterflow.diagnosis.contents import kind_of
from counterflow.diagnosis.controls import delimiter_of
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def declaration(
    adata: AnnData, columns: Mapping[str, Sequence[str]], key: str, control: str, layer: str | None, state: str
) -> tuple[Setup, list[str]]:
    """The proposed declaration, and why some columns are not in it.

    Contexts with controls are matched and read; doses and times need at least two levels.
    """
    obs = adata.obs
    notes: list[str] = []
    delimiter = delimiter_of(list(level_counts(obs[key])), control, set(adata.var_names))
    is_control = {label: not parts(label, delimiter, control) for label in obs[key].astype(str).unique()}
    control_cells = obs[key].astype(str).map(is_control).to_numpy(dtype=bool)
    contexts: list[str] = []
    for role in ("cell type", "donor"):
        column = next((name for name in columns[role] if name != key and obs[name].nunique() > 1), None)
        if column is None:
            continue
        bare = sorted(set(obs[column][~control_cells].astype(str)) - set(obs[column][control_cells].astype(str)))
        if bare:
            listed = ", ".join(map(repr, bare[:3]))
            notes.append(f"{column!r} is not proposed as a context: {len(bare)} of its levels have no control cell ({listed})")
        elif _matched(obs, [*contexts, column], control_cells):
            contexts.append(column)
    setup = Setup(
        perturbation_key=key, control=control, layer=layer, matrix_state="log1p" if state == "log1p" else "counts",
        covariate_keys=tuple(contexts), match_keys=tuple(contexts), delimiter=delimiter,
        dose_key=next((name for name in columns["dose"] if name != key and _doses_vary(obs[name][~control_cells])), None),
        time_key=next((name for name in columns["time"] if name != key and obs[name][~control_cells].nunique() > 1), None),
        library_size_key=next((name for name in columns["library size"] if _covers_all_genes(adata, layer, state, name)), None),
        split_key=next((name for name in columns["split"] if name != key), None),
    )  # fmt: skip
    return setup, notes


def _matched(obs: pd.DataFrame, keys: list[str], control: np.ndarray) -> bool:
    """Whether every combination of levels that holds perturbed cells holds controls."""
    rows = pd.Series(list(obs[keys].astype(str).itertuples(index=False, name=None)))
    return set(rows[~control]) <= set(rows[control])


def _doses_vary(doses: pd.Series) -> bool:
    """Whether there is more than one amount; "1" and "1+1" are one."""
    return len({amount for dose in doses.unique() for amount in amounts(dose) or ()}) > 1


def _covers_all_genes(adata: AnnData, layer: str | None, state: str, column: str) -> bool:
    """Library sizes are worth declaring where they exceed the sums of the file: it holds a part of the genes."""
    library = numbers(adata.obs[column])
    if library is None or state != "counts" or kind_of(adata, layer) != "counts":
        return False
    if is_stored(adata, layer):
        sums = stored(adata, Setup("", "", layer=layer)).totals.astype(float)
    else:
        sums = np.asarray(raw_matrix(adata, layer).sum(axis=1), dtype=float).ravel()
    return bool((library + 0.5 >= sums).all() and library.sum() > 1.02 * sums.sum())


def suggest_split(obs: pd.DataFrame, setup: Setup) -> str | None:
    """The hardest question this screen can be asked: combinations, then doses, times, contexts, perturbations, cells."""
    from counterflow.data.split_file import Keys
    from counterflow.data.splits import build_split

    keys = Keys(
        setup.perturbation_key, setup.control, setup.delimiter, setup.match_keys or setup.covariate_keys, setup.dose_key, setup.time_key
    )
    labels = {label: parts(label, setup.delimiter, setup.control) for label in level_counts(obs[setup.perturbation_key])}
    n_combined = sum(len(names) > 1 for names in labels.values())
    n_single = len({name for names in labels.values() for name in names})
    carried: list[tuple[str, Callable[[], bool]]] = [
        ("unseen_combination", lambda: n_combined >= 4),
        ("unseen_dose", lambda: setup.dose_key is not None),
        ("unseen_time", lambda: setup.time_key is not None),
        ("unseen_context", lambda: bool(keys.context_key) and n_single < 4),
        ("unseen_perturbation", lambda: n_single >= 4),
        ("random", lambda: True),
    ]
    for name, is_possible in carried:
        if is_possible():
            try:
                build_split(name, obs, keys)
            except DataError:
                continue
            return name
    return None
