"""The leak audit of a fitted model: which stages saw a held-out cell, by its ledger; and which cells sit in two sets, by their counts.

It believes what the ledger says. `counterflow.evaluate.poison` proves the same without: it changes the held-out cells and fits again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.ledger import STAGES, CellKeys, Ledger, content_hashes, hashes
from counterflow.data.schema import raise_problems, setup_of
from counterflow.data.screen import Screen, read_screen
from counterflow.data.source import batches
from counterflow.data.splits import SPLITS, audit
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.split_file import Split
    from counterflow.model import CounterFlow

ENOUGH_SURPRISE = 40.0  # nats; among a million cells, two coincide by chance with a probability of less than 1e-5
CHOOSING = ("validation", "guidance")  # stages that may see validation cells while a model is scored on these
_SPLIT = "fit again with the split_key that the model is tested with"
_MEND = {
    "genes": "choose the genes on training cells: n_top_genes=..., or choose_genes",
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


def audit_split(adata: AnnData, split: Split | None = None) -> None:
    """Check that no cell of `adata` (declared, with ``split_key``) sits in two sets, and that `split` holds what its name promises.

    Raises
    ------
    DataError
        If not: no model trained on this split could be tested with it.
    """
    setup = setup_of(adata)
    raise_problems(list(cells_in_two_sets(read_screen(adata, setup))), "this split leaks")
    if split is not None and split.name in SPLITS:
        audit(split.name, adata.obs, split.keys, split.labels(adata.obs))


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
    keys, telling = held_out.keys, surprise(held_out) > ENOUGH_SURPRISE
    called = pd.Series(screen.cells)
    common = (called.duplicated(keep=False) | called.str.isdigit()).to_numpy()[np.isin(screen.split, sets)]
    what = f"{'/'.join(sets)} cell"
    found: dict[tuple[bytes, str], list[str]] = {}  # stages that saw the same cells and are mended in the same way share a message
    for stage in ledger.stages():
        if stage in ledger.seen:
            by_name, by_content = _met(keys, ledger.seen[stage], telling, common)
            asked = held_out.split == "test" if stage in CHOOSING else np.ones(len(held_out.cells), dtype=bool)
            saw = np.array([by_name & asked, (by_name | by_content) & asked])
            if saw.any():
                found.setdefault((saw.tobytes(), _MEND.get(stage, _SPLIT)), []).append(STAGES.get(stage, stage))
    for (packed, how), stages in found.items():
        by_name, either = np.frombuffer(packed, dtype=bool).reshape(2, -1)
        copies = int((either & ~by_name).sum())
        names = [name for name, saw in zip(held_out.cells, either, strict=True) if saw]
        renamed = f" ({copies} of them under another name)" if copies else ""
        yield f"{', '.join(stages)} saw {_listed(names, what)}{renamed}: {how}"


def _met(
    cells: CellKeys, seen: CellKeys, telling: NDArray[np.bool_], common: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cells were seen by their name, and which by their counts. A `common` name needs its counts as well.

    These are names that several cells share, and plain numbers: cell 17 of this file is not cell 17 of every other.
    """
    by_name = np.isin(cells.name, seen.name)
    if seen.content is None or cells.content is None:
        return by_name, np.zeros_like(by_name)
    same = np.isin(cells.content, seen.content)
    return by_name & (~common | same), same & telling


def cells_in_two_sets(screen: Screen) -> Iterable[str]:
    """A message if exactly the same counts are in two sets, under one name or two; counts that coincide by chance need the same name."""
    content = content_hashes(screen.counts, screen.genes)
    key = np.where(surprise(screen) > ENOUGH_SURPRISE, content, hashes(screen.cells) ^ content)
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


def surprise(cells: Screen) -> NDArray[np.float64]:
    """How improbable the counts of each cell are (n, in nats), as Poisson counts at the mean rates of all: small for empty ones."""
    from scipy.special import gammaln

    rate, result = np.zeros(cells.counts.shape[1]), np.zeros(cells.counts.shape[0])
    for rows in batches(cells.counts):
        rate += np.asarray(cells.counts[rows].sum(0, dtype=np.float64)).ravel()
    log_rate = np.log(np.maximum(rate / max(rate.sum(), 1.0), 1e-300))
    for rows in batches(cells.counts):
        counts = cells.counts[rows]
        total = np.asarray(counts.sum(1), dtype=np.float64).ravel()
        log_mean = log_rate[counts.indices] + np.log(np.maximum(total, 1.0)).repeat(np.diff(counts.indptr))
        terms = counts.data * log_mean - gammaln(counts.data.astype(np.float64) + 1.0)
        result[rows] = total - np.bincount(np.arange(len(total)).repeat(np.diff(counts.indptr)), weights=terms, minlength=len(total))
    return result


def _without_features(model: CounterFlow, screen: Screen, subset: str) -> list[str]:
    """Perturbations of held-out conditions that the model knows neither by name nor by features."""
    asked = np.unique(screen.condition[(screen.split == subset) & ~screen.is_control])
    return sorted({part for code in asked for part in model.vocabulary.unknown(screen.conditions[code])})


def _listed(names: list[str], what: str) -> str:
    """``3 test cells (first: 'a', 'b', 'c')``."""
    return f"{len(names)} {what}{'s' if len(names) != 1 else ''} (first: {', '.join(map(repr, names[:3]))})"
