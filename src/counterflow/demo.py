"""The demonstration: a screen whose truth is known, half of its pairs hidden, a model with its defaults beside the simple rules.

The error is to the *true* counterfactual mean, which no real screen has; `benchmarks/simulated_truth.py` repeats it over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from counterflow.data.simulate import SimulatedScreen, simulate_screen
from counterflow.data.split_file import Keys
from counterflow.data.splits import build_split

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.model import CounterFlow

MODEL = "counterflow"


class Predictor(Protocol):
    """A trained model or a simple rule."""

    def predict(self, adata: AnnData, conditions: str) -> AnnData:
        """The control cells of `adata` under a condition, log1p expression in ``X``."""
        ...


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        start = perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + perf_counter() - start, 2)


def run(out: Path, progress: bool = True, *, seed: int = 0) -> dict[str, Any]:
    """Simulate, hide pairs, fit, predict, compare with the truth; write ``cells.h5ad``, ``demo.png`` and ``demo.json`` to `out`.

    Parameters
    ----------
    out
        Directory; made if it is not there.
    progress
        Print what happens, and the table.
    seed
        Of the screen, the split and the model.

    Returns
    -------
    What ``demo.json`` holds: mean error of each method, the pair that was written out, seconds by stage.
    """
    clock = Clock()
    say = print if progress else _nothing
    with clock("simulate"):
        screen, hidden = screen_with_hidden_pairs(seed)
    adata = screen.adata
    say(f"A simulated screen: {adata.n_obs} cells, {adata.n_vars} genes, {len(screen.conditions)} perturbations.")
    say(f"Hidden from every method: {len(hidden)} pairs, whose genes were each measured alone.")
    with clock("fit"):
        model = fit(adata, seed=seed, progress=progress)
    with clock("predict"):
        methods: dict[str, Predictor] = {**fit_rules(adata), MODEL: model}
        errors = errors_to_truth(screen, hidden, methods)
    pair = _typical(errors)
    out.mkdir(parents=True, exist_ok=True)
    with clock("write"):
        cells = model.predict(adata, pair)
        cells.write_h5ad(out / "cells.h5ad")
        _plot(screen, pair, methods, cells, out / "demo.png")
    result = {
        "seed": seed,
        "hidden_pairs": len(hidden),
        "rmse_to_truth": {name: float(value) for name, value in errors.mean().items()},
        "pairs_where_best": {
            name: int(n) for name, n in errors.idxmin(axis=1).value_counts().reindex(errors.columns, fill_value=0).items()
        },
        "pair": pair,
        "seconds": clock.seconds,
        "files": {name: str(out / name) for name in ("cells.h5ad", "demo.png", "demo.json")},
    }
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if progress:
        _print(result)
    return result


def screen_with_hidden_pairs(seed: int, *, interaction: float = 1.0, cells_per_condition: int = 70) -> tuple[SimulatedScreen, list[str]]:
    """A simulated screen, declared (controls matched by cell type), with the split in ``obs["split"]``; and the pairs of its test set."""
    from counterflow.model import CounterFlow

    screen = simulate_screen(seed=seed, interaction=interaction, cells_per_condition=cells_per_condition)
    obs = screen.adata.obs
    split = build_split("unseen_combination", obs, Keys("perturbation", "control"), seed=seed)
    obs["split"] = split.labels(obs)
    CounterFlow.setup_anndata(screen.adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
    return screen, sorted(name for name, where in split.assignment.items() if where == "test")


def fit(adata: AnnData, *, seed: int, progress: bool = False) -> CounterFlow:
    """The model with its defaults."""
    from counterflow.model import CounterFlow

    model = CounterFlow(adata, seed=seed)
    model.train(progress=progress)
    return model


def fit_rules(adata: AnnData, names: tuple[str, ...] = ("control", "mean", "additive")) -> dict[str, Predictor]:
    """Simple rules, on the same training cells."""
    from counterflow.evaluate.baselines import BASELINES

    rules: dict[str, Predictor] = {}
    for name in names:
        rule = BASELINES[name]()
        rule.train(adata)
        rules[name] = rule
    return rules


def errors_to_truth(screen: SimulatedScreen, pairs: list[str], methods: Mapping[str, Predictor]) -> pd.DataFrame:
    """Root mean squared error over genes of the predicted mean of all control cells, to its true value: pairs x methods."""
    controls = screen.adata[screen.adata.obs["perturbation"] == "control"]
    rows = {}
    for pair in pairs:
        truth = screen.true_mean(pair)
        rows[pair] = {name: rmse(mean_expression(method.predict(controls, pair)), truth) for name, method in methods.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def mean_expression(cells: AnnData) -> np.ndarray:
    """Mean of ``X`` over cells (G)."""
    return np.asarray(cells.X.mean(0), dtype=float).ravel()


def rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Root mean squared difference."""
    return float(np.sqrt(np.mean((predicted - truth) ** 2)))


def _typical(errors: pd.DataFrame) -> str:
    """The pair on which the model is as good as on the median pair: the picture should not flatter."""
    return str(errors[MODEL].sort_values().index[len(errors) // 2])


def _plot(screen: SimulatedScreen, pair: str, methods: Mapping[str, Predictor], cells: AnnData, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from counterflow import pl

    adata = screen.adata
    controls, real = (_log1p(adata[adata.obs["perturbation"] == label]) for label in ("control", pair))
    before = screen.true_mean("control")
    observed = mean_expression(controls)
    effects = {
        MODEL: mean_expression(cells) - observed,
        "additive": mean_expression(methods["additive"].predict(controls_of(adata), pair)) - observed,
    }
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    pl.effect(screen.true_mean(pair) - before, effects, genes=list(adata.var_names), title=f"{pair}: effect on each gene", ax=left)
    pl.embedding(controls, real, cells, title=f"{pair}: cells, and their means (outlined)", ax=right)
    figure.savefig(path, dpi=150)


def controls_of(adata: AnnData) -> AnnData:
    """The control cells."""
    return adata[adata.obs["perturbation"] == "control"]


def _log1p(cells: AnnData) -> AnnData:
    from counterflow.evaluate.baselines import log_expression

    normalised = cells.copy()
    normalised.X = log_expression(cells.X, cells.obs["n_counts"].to_numpy())
    return normalised


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Error to the true mean of the hidden pairs (RMSE over genes, log1p; lower is better)", title_justify="left")
    for name in ("method", "error", "best in"):
        table.add_column(name, justify="left" if name == "method" else "right")
    best = min(result["rmse_to_truth"], key=result["rmse_to_truth"].get)
    for name, error in result["rmse_to_truth"].items():
        count = f"{result['pairs_where_best'][name]} of {result['hidden_pairs']}"
        table.add_row(name, f"{error:.4f}", count, style="bold" if name == best else None)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"Cells of {result['pair']}: {result['files']['cells.h5ad']}   picture: {result['files']['demo.png']}")
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds"].items())
    console.print(f"{stages}; {sum(result['seconds'].values()):.0f} s in all.")


def _nothing(*_: object) -> None:
    """Says nothing."""
