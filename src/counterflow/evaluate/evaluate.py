"""Score predictions on held-out conditions: models, simple baselines and the ceiling in one table, against the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.data.genes import chosen_genes
from counterflow.data.ledger import Ledger
from counterflow.data.screen import gene_positions
from counterflow.data.stored import read_cells_at
from counterflow.errors import ConfigError, DataError, near
from counterflow.evaluate.audit import audit_predictors
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.coverage import SaysHowSure, coverage
from counterflow.evaluate.examples import Examples, chosen_units, example
from counterflow.evaluate.metrics import METRICS
from counterflow.evaluate.scoring import CEILING, DIAGNOSTICS, REPLICATE, SLOW, UnitScores, rank_scores, score_unit, self_test
from counterflow.evaluate.table import Table
from counterflow.evaluate.truth import Truth, Unit, read_truth

if TYPE_CHECKING:
    from anndata import AnnData

HEADLINE = (
    "pearson_delta", "pearson_delta_pertref", "mse", "wmse", "pds_cosine", "energy", "c2st_gene", "std_log2ratio", "r2_mean",
)  # fmt: skip
"""One metric of each family at least: means, ranks, errors, clouds of cells. `r2_mean` is there to compare with papers only."""

FEWEST_PREDICTED = 200
"""Control cells that a prediction starts from, repeated where there are fewer: counts are drawn, and few draws of a mean are noisy."""

MOST_CLASSIFIED = 10  # units, evenly chosen, on which classifiers are trained: they take longer than everything else together
ALWAYS = ("control", "mean", "additive")


class Predictor(Protocol):
    """Anything trained that turns control cells into cells under other conditions: a `CounterFlow`, a baseline, yours."""

    def predict(self, adata: AnnData, conditions: pd.DataFrame, /) -> AnnData:
        """Cells of `adata` under `conditions` (a DataFrame with the setup's columns); ``X`` is log1p of counts per 10,000.

        Rows are in the order of `adata`. Few controls come several times, the later ones with a suffix ("-1") to their name.
        """
        ...


def evaluate(
    predictors: Mapping[str, Predictor],
    adata: AnnData,
    *,
    subset: str = "test",
    n_halvings: int = 5,
    seed: int = 0,
    metrics: Sequence[str] = HEADLINE,
    baselines: Sequence[str] = ALWAYS,
    trained_on: AnnData | None = None,
    dataset: str = "",
    split: str = "",
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Score every predictor, the simple baselines and the split-half ceiling on the held-out conditions of `adata`.

    All rows are scored on the same genes, those that every predictor predicts (of those that `choose_genes` named, if it was called),
    and each against the same random half of the real cells; the ceiling is the other half. Effects are measured from the real
    controls of the same context, never from predicted ones. The perturbed gene itself is left out.

    Parameters
    ----------
    predictors
        Name -> trained predictor.
    adata
        Declared with ``split_key``: predictors were fitted on ``train`` only.
    subset
        The set that is scored: ``test``, or ``val`` while choosing.
    n_halvings, seed
        Random halvings of the real cells to average over, and their seed.
    metrics
        Names of `counterflow.evaluate.metrics.METRICS`.
    baselines
        Names of `counterflow.evaluate.baselines.BASELINES`, trained here on the ``train`` cells; ``control`` and ``mean`` are always added.
    trained_on
        Declared cells that the baselines are trained on in place of `adata`: fewer conditions, for a learning curve. What is scored
        against stays that of `adata`.
    dataset, split
        Names that are written into the table.
    progress
        Called with one line per unit.

    Raises
    ------
    DataError
        If `adata` has no split, a predictor returns no cells or none of its genes, or one that keeps a ledger saw a held-out cell.
    """
    _check_names(predictors, metrics, baselines)
    truth = read_truth(adata, subset, seed)
    audited = audit_predictors(predictors, adata, subset)
    trained = {name: BASELINES[name]() for name in dict.fromkeys([*ALWAYS[:2], *baselines])}
    for baseline in trained.values():
        baseline.train(adata if trained_on is None else trained_on)
    everyone: dict[str, Predictor] = {**predictors, **trained}
    first = _predict_all(everyone, adata, truth, truth.units[0])
    chosen = chosen_genes(adata, Ledger())
    wanted_genes = truth.screen.genes if chosen is None else [gene for gene in truth.screen.genes if gene in set(chosen)]
    genes = [gene for gene in wanted_genes if all(gene in cells.var_names for cells in first.values())]
    if not genes:
        raise DataError("the predictors have no gene in common with each other and with adata")
    if len(genes) < len(truth.screen.genes):
        truth = truth.on_genes(genes, seed)
    scored: dict[int, UnitScores] = {}
    shown = {unit.number for unit in chosen_units(truth)}
    examples = []
    sure = [coverage(one, adata, truth, seed).assign(method=name) for name, one in predictors.items() if isinstance(one, SaysHowSure)]
    classified = set(np.linspace(0, len(truth.units) - 1, min(MOST_CLASSIFIED, len(truth.units))).round().astype(int).tolist())
    for unit in truth.units:
        if progress is not None:
            progress(f"scoring {unit.number + 1} of {len(truth.units)}: {unit.condition} {unit.context}".rstrip())
        predicted = first if unit.number == 0 else _predict_all(everyone, adata, truth, unit)
        cells = {name: _expression(prediction, genes) for name, prediction in predicted.items()}
        wanted = [metric for metric in metrics if metric not in SLOW or unit.number in classified]
        scored[unit.number] = score_unit(truth, unit, cells, wanted, n_halvings, seed)
        if unit.number in shown:
            examples.append(example(truth, unit, cells, seed, dataset=dataset, split=split))
    kinds = dict.fromkeys(predictors, "model") | dict.fromkeys(trained, "baseline") | {CEILING: "ceiling", REPLICATE: "ceiling"}
    rows = _long(truth, scored, rank_scores(truth, scored, metrics), kinds, metrics)
    for name, value in (("seed", seed), ("split", split), ("dataset", dataset)):
        rows.insert(0, name, value)
    where = " ".join(filter(None, (dataset, split))) or "this table"
    notes = _notes(truth, genes, adata.n_vars, len(classified) if set(SLOW) & set(metrics) else len(truth.units))
    intervals = pd.concat(filled, ignore_index=True) if (filled := [one for one in sure if "level" in one]) else pd.DataFrame()
    for name, value in (("seed", seed), ("split", split), ("dataset", dataset)):
        if len(intervals):
            intervals.insert(0, name, value)
    return Table(
        rows, {where: self_test(truth, n_halvings, seed)}, notes=(*notes, *audited), examples=Examples.concat(examples), coverage=intervals
    )


def _check_names(predictors: Mapping[str, Predictor], metrics: Sequence[str], baselines: Sequence[str]) -> None:
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"no metric is called {name!r}: {near(name, METRICS)}")
    for name in baselines:
        if name not in BASELINES:
            raise ConfigError(f"no baseline is called {name!r}: {near(name, BASELINES)}")
    taken = sorted({CEILING, REPLICATE, *ALWAYS, *baselines} & set(predictors))
    if taken:
        raise ConfigError(f"{taken[0]!r} is the name of a reference row: give your predictor another name")


def _predict_all(predictors: Mapping[str, Predictor], adata: AnnData, truth: Truth, unit: Unit) -> dict[str, AnnData]:
    sources = truth.contexts[unit.context_code].sources
    if len(sources) < 2:
        raise DataError(
            f"{unit.context or 'the screen'} has {len(sources)} control cells: at least 2 are needed to score {unit.condition!r}"
        )
    repeated = np.tile(np.arange(len(sources)), -(-FEWEST_PREDICTED // len(sources)))
    with warnings.catch_warnings():  # of names that are made unique on the next line
        warnings.filterwarnings("ignore", "Observation names are not unique")
        controls = read_cells_at(adata, truth.setup, sources)[repeated].copy()
        controls.obs_names_make_unique()
    result = {}
    for name, predictor in predictors.items():
        result[name] = predictor.predict(controls, unit.request)
        if result[name].n_obs < 2:
            raise DataError(f"{name!r} predicts {result[name].n_obs} cells of {unit.condition!r}: at least 2 are needed")
    return result


def _expression(predicted: AnnData, genes: list[str]) -> NDArray[np.float32]:
    columns = gene_positions(predicted.var_names, genes)
    cells = predicted.X[:, columns]  # type: ignore[index]
    dense = np.asarray(cells.toarray() if hasattr(cells, "toarray") else cells, dtype=np.float32)
    if not np.isfinite(dense).all():
        raise DataError("a prediction holds numbers that are not finite")
    return dense


def _long(
    truth: Truth,
    scored: Mapping[int, UnitScores],
    ranks: Mapping[tuple[int, str, str], float],
    kinds: Mapping[str, str],
    metrics: Sequence[str],
) -> pd.DataFrame:
    strata, thirds = _strata(truth), _thirds([scores.effect_size for scores in scored.values()])
    rows = []
    for unit, third in zip(truth.units, thirds, strict=True):
        scores = scored[unit.number]
        for method, kind in kinds.items():
            values = scores.values[method] | {m: v for (number, row, m), v in ranks.items() if (number, row) == (unit.number, method)}
            for metric in [*metrics, *DIAGNOSTICS]:
                rows.append(
                    {
                        "method": method, "kind": kind, "condition": unit.condition, "context": unit.context,
                        "stratum": strata[unit.number], "third": third, "n_cells": scores.n_cells,
                        "metric": metric, "value": values.get(metric, float("nan")),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _strata(truth: Truth) -> dict[int, str]:
    """How far each unit is from training: single, or combo_seen0, 1, 2 by the parts that any training condition contains."""
    screen = truth.screen
    training = np.unique(screen.condition[(screen.split == "train") & ~screen.is_control])
    seen = {part for code in training for part in screen.conditions[code].parts}
    return {
        unit.number: f"combo_seen{sum(part in seen for part in unit.spec.parts)}" if len(unit.spec.parts) > 1 else "single"
        for unit in truth.units
    }


def _thirds(sizes: list[float]) -> list[str]:
    """Weak, middle and strong effects by the length of the real effect; all "all" with fewer than three."""
    if len(sizes) < 3:
        return ["all"] * len(sizes)
    position = np.argsort(np.argsort(sizes)) * 3 // len(sizes)
    return [("weak", "middle", "strong")[i] for i in position]


def _notes(truth: Truth, genes: list[str], n_vars: int, classified: int) -> tuple[str, ...]:
    notes = []
    if classified < len(truth.units):
        notes.append(f"Classifiers (c2st) were trained for {classified} of the {len(truth.units)} conditions, evenly chosen.")
    if truth.skipped:
        notes.append(f"Left out, too few cells: {', '.join(truth.skipped)}.")
    if len(genes) < n_vars:
        notes.append(f"Scored on {len(genes)} of {n_vars} genes, those that every method predicts.")
    return tuple(notes)


__all__ = ["ALWAYS", "HEADLINE", "Predictor", "evaluate"]
