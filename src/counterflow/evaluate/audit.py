"""The leak audit of a fitted model: which stages saw a held-out cell, by its ledger; and which cells sit in two sets, by their counts.

It believes what the ledger says. `counterflow.evaluate.poison` proves the same without: it changes the held-out cells and fits again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.ledger import STAGES, CellKeys, Ledger
from counterflow.data.schema import setup_of
from counterflow.data.screen import Screen, read_screen
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.model import CounterFlow

FEWEST_DETECTED = 25  # genes; cells with fewer coincide by chance, and are told apart by name
CHOOSING = ("validation", "guidance")  # stages that may see validation cells while a model is scored on these
_SPLIT = "fit again with the split_key that the model is tested with"
_MEND = {
    "genes": "choose the genes on training cells: n_top_genes=..., or restrict_genes",
    "features": "compute the features on training cells, or take them from other data",
    "vae": "train the autoencoder on training cells",
    "validation": "mark other cells 'val': early stopping on test cells chooses the model that suits them",
    "guidance": "choose the scale on validation conditions: choose_guidance(..., subset='val')",
}


@runtime_checkable
class Audited(Protocol):
    """A predictor that can say whether it saw a held-out cell."""

    def audit(self, adata: AnnData, subset: str = "test") -> str:
        """What was audited, in words; DataError for a leak."""
        ...


def audit_predictors(predictors: Mapping[str, object], adata: AnnData, subset: str = "test") -> tuple[str, ...]:
    """One line for each predictor that can be audited.

    Raises
    ------
    DataError
        For the first that leaks.
    """
    lines = []
    for name, predictor in predictors.items():
        if isinstance(predictor, Audited):
            try:
                lines.append(f"{name}: {predictor.audit(adata, subset)}")
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
    return tuple(lines)


def audit_model(model: CounterFlow, adata: AnnData, subset: str = "test", on_unknown: Literal["error", "mean"] = "error") -> str:
    """Check that nothing fitted in `model` saw a held-out cell of `adata`, and that no cell sits in two sets.

    Parameters
    ----------
    model
        A trained model, or one that was loaded.
    adata
        Declared with the ``split_key`` that the model is tested with.
    subset
        The set that is scored: ``test``, or ``val`` while choosing. Test cells must be unseen in either case.
    on_unknown
        ``error``: a held-out perturbation without features is a fault. ``mean``: it is predicted by the mean effect, and this is said.

    Returns
    -------
    str
        What passed, and what is not known.

    Raises
    ------
    DataError
        Naming every stage that saw a held-out cell, cells in two sets, and held-out perturbations without features.
    """
    setup = setup_of(adata)
    if setup.split_key is None:
        raise DataError("nothing is held out: fill a column with train | val | test (build_split) and declare it as split_key")
    screen = read_screen(adata, setup)
    problems = list(cells_in_two_sets(screen))
    without = _without_features(model, screen, subset)
    if without and on_unknown == "error":
        problems.append(
            f"{_listed(without, 'held-out perturbation')} without features: the model knows nothing about it; "
            "add a row to perturbation_features, or take it out of the held-out set"
        )
    if model.ledger is not None:
        problems += _stages_that_saw(model.ledger, screen, model.genes, subset)
    if problems:
        raise DataError("the leak audit failed: " + "; ".join(problems))
    return _passed(model.ledger, without)


def _passed(ledger: Ledger | None, without: list[str]) -> str:
    if ledger is None:
        text = "no ledger (an older version saved this model): what it was fitted on cannot be audited; no cell sits in two sets"
    else:
        text = "leak audit passed: " + ", ".join(stage for stage in ledger.stages() if stage in ledger.seen)
        unknown = [stage for stage in ledger.stages() if stage in ledger.remarks]
        text += f"; not known: {', '.join(unknown)}" if unknown else ""
    return text + (f"; predicted by the mean effect, for want of features: {', '.join(without)}" if without else "")


def _stages_that_saw(ledger: Ledger, screen: Screen, genes: tuple[str, ...], subset: str) -> Iterable[str]:
    """A message for each stage that learned from a held-out cell."""
    sets = np.array(sorted({"test", subset}))
    held_out = screen.rows(np.isin(screen.split, sets))
    held_out = held_out.on_genes(genes)
    keys, detected = held_out.keys, np.diff(held_out.counts.indptr) >= FEWEST_DETECTED
    several = pd.Series(screen.cells).duplicated(keep=False).to_numpy()[np.isin(screen.split, sets)]
    for stage in ledger.stages():
        if stage not in ledger.seen:
            continue
        by_name, by_content = _met(keys, ledger.seen[stage], detected, several)
        asked = held_out.split == "test" if stage in CHOOSING else np.ones(len(held_out.cells), dtype=bool)
        saw = (by_name | by_content) & asked
        if saw.any():
            copies = int((saw & ~by_name).sum())
            names = [name for name, found in zip(held_out.cells, saw, strict=True) if found]
            yield (
                f"{STAGES.get(stage, stage)} saw {_listed(names, f'{"/".join(sets)} cell')}"
                + (f" ({copies} of them under another name)" if copies else "")
                + f": {_MEND.get(stage, _SPLIT)}"
            )


def _met(
    cells: CellKeys, seen: CellKeys, detected: NDArray[np.bool_], several: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cells were seen by their name, and which by their counts. A name that several cells share needs its counts as well."""
    by_name = np.isin(cells.name, seen.name)
    if seen.content is None or cells.content is None:
        return by_name, np.zeros_like(by_name)
    same = np.isin(cells.content, seen.content)
    return by_name & (~several | same), same & detected


def cells_in_two_sets(screen: Screen) -> Iterable[str]:
    """A message if exactly the same counts are in two sets, under one name or two; cells with few detected genes need the same name."""
    detected = np.diff(screen.counts.indptr) >= FEWEST_DETECTED
    key = np.where(detected, screen.keys.content, screen.keys.name ^ screen.keys.content)  # type: ignore[operator]
    table = pd.DataFrame({"key": key, "set": screen.split, "cell": screen.cells})
    sets = table.groupby("key")["set"].transform("nunique")
    doubled = table[(sets > 1).to_numpy()].sort_values("key", kind="stable")
    if not len(doubled):
        return
    first = doubled[doubled["key"] == doubled["key"].iloc[0]]
    where = " and ".join(f"{cell!r} in {which}" for cell, which in zip(first["cell"].iloc[:3], first["set"].iloc[:3], strict=True))
    yield (
        f"{doubled['key'].nunique()} cells sit in two sets, with exactly the same counts (first: {where}): "
        "drop the copies, or put all of them into one set"
    )


def _without_features(model: CounterFlow, screen: Screen, subset: str) -> list[str]:
    """Perturbations of held-out conditions that the model knows neither by name nor by features."""
    asked = np.unique(screen.condition[(screen.split == subset) & ~screen.is_control])
    return sorted({part for code in asked for part in model.vocabulary.unknown(screen.conditions[code])})


def _listed(names: list[str], what: str) -> str:
    """``3 test cells (first: 'a', 'b', 'c')``."""
    return f"{len(names)} {what}{'s' if len(names) != 1 else ''} (first: {', '.join(map(repr, names[:3]))})"
