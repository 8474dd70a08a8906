"""A few held-out conditions to look at: some cells of every method and its effects on the top genes, small enough to keep and plot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from counterflow.evaluate.metrics import top_genes, welch_t
from counterflow.evaluate.truth import Truth, Unit

MOST_CELLS = 80  # of each method and condition
FEWEST_CELLS = 20  # real ones, if there are such conditions
N_VIOLINS, N_EFFECTS = 6, 20  # genes
WHERE = ["dataset", "split", "condition", "context", "method"]


@dataclass
class Examples:
    """Long tables of example conditions.

    Attributes
    ----------
    cells
        One row per cell and feature: ``PC1`` and ``PC2`` (principal components of the control and real cells of the condition) and the
        log expression of the genes of largest real absolute t. Methods are those of the table, ``control`` and ``real``.
    effects
        One row per method and gene: ``predicted`` and ``real`` effect on the 20 genes of largest real absolute t.
    """

    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``example_cells.csv`` and ``example_effects.csv``, if there is something in them."""
        for name, frame in (("cells", self.cells), ("effects", self.effects)):
            file = Path(directory) / f"example_{name}.csv"
            file.unlink(missing_ok=True)  # of an earlier table
            if len(frame):
                frame.to_csv(file, index=False, float_format="%.4g")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Examples:
        """Read what `save` wrote; empty where it wrote nothing."""
        text = dict.fromkeys(("dataset", "split", "condition", "context", "method", "gene", "feature"), str)
        files = [Path(directory) / f"example_{name}.csv" for name in ("cells", "effects")]
        return cls(*(pd.read_csv(file, dtype=text, keep_default_na=False) if file.exists() else pd.DataFrame() for file in files))

    @classmethod
    def concat(cls, several: Iterable[Examples]) -> Examples:
        """One of several; control and real cells, which all share, are kept once."""
        several = list(several)
        return cls(
            _stacked([one.cells for one in several], [*WHERE, "cell", "feature"]),
            _stacked([one.effects for one in several], [*WHERE, "gene"]),
        )


def _stacked(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True).drop_duplicates(keys, ignore_index=True) if filled else pd.DataFrame()


def chosen_units(truth: Truth) -> list[Unit]:
    """The conditions of the strongest, of the middle and of the weakest real effect, among those with enough cells to look at."""
    sizes = [np.linalg.norm((truth.mean(unit.real) - truth.control_mean(unit.context_code))[unit.kept]) for unit in truth.units]
    order = np.argsort(sizes)[::-1]
    clear = [i for i in order if len(truth.units[i].real) >= FEWEST_CELLS]
    order = np.array(clear) if clear else order
    return [truth.units[i] for i in dict.fromkeys(int(i) for i in order[[0, len(order) // 2, -1]])]


def example(truth: Truth, unit: Unit, predicted: Mapping[str, NDArray], seed: int, **named: str) -> Examples:
    """What is kept of one unit: `predicted` are the cells (m x G, log expression) of every method; `named`: ``dataset`` and ``split``."""
    from sklearn.decomposition import PCA

    control, real = truth.log(truth.contexts[unit.context_code].sources), truth.log(unit.real)
    rng = np.random.default_rng([seed, unit.number])
    strength = np.where(unit.kept, np.abs(welch_t(real, control)), -np.inf)
    genes = truth.screen.genes
    shown = top_genes(strength, N_VIOLINS)
    pca = PCA(2, random_state=0).fit(np.concatenate([_some(control, len(real), rng), real])[:, unit.kept])
    where = {**named, "condition": unit.condition, "context": unit.context}
    cells = []
    for method, values in {**predicted, "control": control, "real": real}.items():  # the floor is the control cells themselves
        some = _some(values, MOST_CELLS, np.random.default_rng([seed, unit.number, 1]))
        features = np.concatenate([pca.transform(some[:, unit.kept]), some[:, shown]], 1)
        names = ["PC1", "PC2", *(genes[i] for i in shown)]
        wide = pd.DataFrame(features, columns=names).assign(**where, method=method, cell=range(len(some)))
        cells.append(wide.melt([*where, "method", "cell"], var_name="feature"))
    effects = []
    most = top_genes(strength, N_EFFECTS)
    origin, target = control.mean(0), real.mean(0)
    for method, values in predicted.items():
        change = {"predicted": (values.mean(0) - origin)[most], "real": (target - origin)[most]}
        effects.append(pd.DataFrame({**where, "method": method, "gene": [genes[i] for i in most], **change}))
    return Examples(pd.concat(cells, ignore_index=True), pd.concat(effects, ignore_index=True))


def _some(cells: NDArray, n: int, rng: np.random.Generator) -> NDArray:
    return cells[np.sort(rng.permutation(len(cells))[:n])]
