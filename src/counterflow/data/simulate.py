"""A perturb-seq screen with known truth: the data every demonstration, test and benchmark can fall back on.

The cells come from the cascade of `counterflow.data.cascade`. Regulators are measured genes and their activity varies from cell to
cell along the same cascade that perturbations use, so the co-expression of control cells says something about what a perturbation
does. Some pairs are sub-additive, some super-additive, some mask each other; how many, `interaction` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from counterflow.data.cascade import (
    Biology,
    CellStates,
    Perturbation,
    draw_biology,
    draw_cells,
    draw_counts,
    draw_perturbations,
    expected_log1p,
    log_rate,
    softmax,
)
from counterflow.data.labels import parts
from counterflow.errors import ConfigError, DataError, near

SMALL = {"n_genes": 60, "n_perturbations": 6, "n_pairs": 6, "cells_per_condition": 25, "cells_control": 120, "n_cell_types": 2}
"""Arguments of the small screen used by tests: ``simulate_screen(**SMALL)``."""

Measured: TypeAlias = tuple[str, float | None, float | None]  # label, dose, time; None in a screen without doses, without times


@dataclass(frozen=True)
class SimulatedScreen:
    """A simulated screen: `adata` is what a user would have, the methods are what nobody ever has.

    Attributes
    ----------
    adata
        Raw counts (CSR, float32); ``obs``: ``perturbation`` ("control", "G012", "G012+G087"), ``cell_type``, ``batch``, ``n_counts``,
        ``dose`` and ``time`` where the screen has them; ``uns["simulation"]``: the arguments.
    biology, perturbations, cells
        The truth behind it, for whoever wants to look.
    """

    adata: AnnData
    biology: Biology
    perturbations: dict[str, Perturbation]
    cells: CellStates

    @property
    def conditions(self) -> tuple[str, ...]:
        """Labels of the measured conditions: genes, pairs, compounds; the control is not among them."""
        return tuple(label for label in self.adata.obs["perturbation"].cat.categories if label != "control")

    @property
    def condition_table(self) -> pd.DataFrame:
        """One row per measured condition (perturbation, and dose and time where there are any) with its number of cells."""
        keys = [key for key in ("perturbation", "dose", "time") if key in self.adata.obs]
        return self.adata.obs.groupby(keys, observed=True, sort=True).size().rename("n_cells").reset_index()

    def log_rate(
        self, cells: Sequence | np.ndarray | None, condition: str, dose: float | None = None, time: float | None = None
    ) -> np.ndarray:
        """True log rate (cells x genes, up to a constant per cell) had these cells received `condition`; see `counterfactual`."""
        chosen = self.cells.take(self._rows(cells))
        return log_rate(self.biology, chosen, *self._perturb(condition, dose, time))

    def counterfactual(
        self, cells: Sequence | np.ndarray | None, condition: str, dose: float | None = None, time: float | None = None
    ) -> np.ndarray:
        """True expected counts of these cells, with their own state, type, batch and library, had they received `condition`.

        Parameters
        ----------
        cells
            Names or integer positions in `adata`; None for all control cells.
        condition
            Any combination of the screen's perturbations, measured or not; "control" gives the cells' own expectation.
        dose
            One dose for every part. Needed for compounds; the dose of genes is 1, less is a weaker effect, more is no stronger one.
        time
            Needed when the screen has times, for anything but the control.

        Returns
        -------
        Expected counts, cells x genes; each row sums to the cell's expected library.

        Raises
        ------
        DataError
            For a cell or a perturbation that the screen does not have, or a missing dose or time.
        """
        rows = self._rows(cells)
        return self._expected(self.log_rate(rows, condition, dose, time), rows)

    def true_mean(
        self, condition: str, cells: Sequence | np.ndarray | None = None, dose: float | None = None, time: float | None = None
    ) -> np.ndarray:
        """Noise-free mean over `cells` (default: all controls) of log1p(1e4 * counts / library), had they received `condition`.

        The expectation over the counts, and over the library they sum to, is exact up to quadrature (error below 1e-5; no random
        draws): see `expected_log1p`.

        Returns
        -------
        One value per gene.
        """
        rows = self._rows(cells)
        return expected_log1p(self._expected(self.log_rate(rows, condition, dose, time), rows), self.biology.dispersion).mean(axis=0)

    def _expected(self, log_rate: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.cells.library[rows, None] * softmax(log_rate)

    def _rows(self, cells: Sequence | np.ndarray | None) -> np.ndarray:
        if cells is None:
            return np.flatnonzero(self.adata.obs["perturbation"] == "control")
        chosen = np.atleast_1d(np.asarray(cells))
        if chosen.dtype.kind not in "iu":
            rows = self.adata.obs_names.get_indexer(pd.Index(chosen))
            if (rows < 0).any():
                name = chosen[rows < 0][0]
                raise DataError(f"cell {name!r} is not in the simulated screen: {near(name, self.adata.obs_names)}")
            return rows
        if ((chosen < 0) | (chosen >= self.adata.n_obs)).any():
            raise DataError(f"cell positions must lie in 0 ... {self.adata.n_obs - 1}; got {chosen.min()} ... {chosen.max()}")
        return chosen

    def _perturb(self, condition: str, dose: float | None, time: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Changes (R,) of regulator activity and of the regulators' own genes."""
        activity, own_gene = np.zeros(len(self.biology.regulators)), np.zeros(len(self.biology.regulators))
        for name in parts(condition):
            if name not in self.perturbations:
                raise DataError(f"the simulated screen has no perturbation {name!r}: {near(name, self.perturbations)}")
            perturbation = self.perturbations[name]
            if dose is None and perturbation.half_dose is not None:
                raise DataError(f"{name!r} is a compound: give its dose, for example dose=1.0")
            if time is None and "time" in self.adata.obs:
                raise DataError(f"the simulated screen has times: give the time at which {condition!r} is looked at, for example time=1.0")
            if (dose or 0.0) < 0 or (time or 0.0) < 0:
                raise DataError(f"dose and time cannot be negative; got dose={dose}, time={time}")
            strength = perturbation.strength(1.0 if dose is None else dose, time)
            activity += strength * perturbation.activity
            own_gene += strength * perturbation.own_gene
        return activity, own_gene


def simulate_screen(
    *,
    n_genes: int = 250,
    n_perturbations: int = 16,
    n_pairs: int = 45,
    n_compounds: int = 4,
    cells_per_condition: int = 70,
    cells_control: int = 600,
    n_cell_types: int = 3,
    n_batches: int = 2,
    doses: Sequence[float] = (),
    times: Sequence[float] = (),
    interaction: float = 1.0,
    seed: int = 0,
) -> SimulatedScreen:
    """Simulate a perturb-seq screen whose counterfactuals are known.

    Parameters
    ----------
    n_genes, n_perturbations, n_pairs
        Measured genes; perturbed regulators, half activated and half knocked down, each also a measured gene; pairs of them.
    n_compounds
        Compounds, each acting on two regulators; only in a screen with `doses`.
    cells_per_condition, cells_control
        Cells of each condition (perturbation x dose x time) and control cells in total, over all types and batches.
    n_cell_types, n_batches
        Cell types differ in expression, in abundance and in the programs that can respond; batches in expression and depth.
    doses
        Doses at which every compound is measured (Hill response). The dose of genes and pairs is 1, of controls 0.
    times
        Times at which every condition is measured: the effect grows as 1 - exp(-time / tau). The time of controls is 0.
    interaction
        0: the log rate is exactly additive over perturbations; 1: programs saturate, amplify and mask one another.
        The same seed gives the same cascade and cells for every value.
    seed
        The screen is a function of the arguments alone.

    Raises
    ------
    ConfigError
        For sizes that do not fit each other.

    Examples
    --------
    >>> screen = simulate_screen(n_genes=60, n_perturbations=6, n_pairs=6, cells_per_condition=25, cells_control=120)
    >>> screen.adata.shape
    (420, 60)
    """
    _check_sizes(n_genes, n_perturbations, n_pairs, cells_per_condition, cells_control, n_cell_types, n_batches, doses, times, interaction)
    cascade_rng, design_rng, cell_rng, count_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    biology = draw_biology(cascade_rng, n_genes, n_perturbations, n_cell_types, n_batches, interaction)
    gene_names = [f"G{gene:03d}" for gene in range(n_genes)]
    perturbations = draw_perturbations(design_rng, biology, gene_names, n_compounds if len(doses) else 0, doses, times)
    conditions = _design(design_rng, biology, perturbations, n_pairs, doses, times)

    which = cell_rng.permutation(np.repeat(np.arange(len(conditions)), [cells_control] + [cells_per_condition] * (len(conditions) - 1)))
    cells = draw_cells(cell_rng, biology, len(which))
    adata = AnnData(
        X=csr_matrix((len(which), n_genes), dtype=np.float32),
        obs=_obs(conditions, which, cells),
        var=pd.DataFrame(index=gene_names),
    )
    screen = SimulatedScreen(adata, biology, perturbations, cells)
    counts = np.zeros(adata.shape, dtype=np.float32)
    for number, condition in enumerate(conditions):
        rows = np.flatnonzero(which == number)
        counts[rows] = draw_counts(count_rng, screen.counterfactual(rows, *condition), biology.dispersion)
    adata.X = csr_matrix(counts)
    adata.obs["n_counts"] = counts.sum(axis=1)
    adata.uns["simulation"] = {
        "n_genes": n_genes,
        "n_perturbations": n_perturbations,
        "n_pairs": n_pairs,
        "n_compounds": n_compounds,
        "cells_per_condition": cells_per_condition,
        "cells_control": cells_control,
        "n_cell_types": n_cell_types,
        "n_batches": n_batches,
        "doses": [float(dose) for dose in doses],
        "times": [float(time) for time in times],
        "interaction": float(interaction),
        "seed": seed,
    }
    return screen


def _obs(conditions: list[Measured], which: np.ndarray, cells: CellStates) -> pd.DataFrame:
    labels, doses, times = zip(*conditions, strict=True)
    obs = pd.DataFrame(index=[f"cell{row:06d}" for row in range(len(which))])
    obs["perturbation"] = pd.Categorical([labels[c] for c in which], categories=list(dict.fromkeys(labels)))
    obs["cell_type"] = pd.Categorical([f"type{cell_type}" for cell_type in cells.cell_type])
    obs["batch"] = pd.Categorical([f"batch{batch}" for batch in cells.batch])
    if None not in doses:
        obs["dose"] = [doses[c] for c in which]
    if None not in times:
        obs["time"] = [times[c] for c in which]
    return obs


def _design(
    rng: np.random.Generator,
    biology: Biology,
    perturbations: dict[str, Perturbation],
    n_pairs: int,
    doses: Sequence[float],
    times: Sequence[float],
) -> list[Measured]:
    """The measured conditions, the control first."""
    genes = [name for name, perturbation in perturbations.items() if perturbation.half_dose is None]
    pairs = list(combinations(genes, 2))
    # Screens of pairs are not random: genes are paired because they are thought to meet in a pathway.
    targets = (np.array([perturbations[gene].activity for gene in genes]) @ biology.regulator_to_program) != 0
    shared = np.array([(targets[genes.index(a)] & targets[genes.index(b)]).sum() for a, b in pairs])
    weight = np.where(shared > 0, 4.0, 1.0)
    chosen = np.sort(rng.choice(len(pairs), n_pairs, replace=False, p=weight / weight.sum())) if n_pairs else np.empty(0, dtype=int)
    labels = genes + ["+".join(pairs[i]) for i in chosen]
    compounds = [name for name in perturbations if name not in genes]
    dosed: list[tuple[str, float | None]] = [(label, 1.0 if len(doses) else None) for label in labels]
    dosed += [(name, float(dose)) for name in compounds for dose in doses]
    at_times: list[float | None] = [float(time) for time in times] or [None]
    control: Measured = ("control", 0.0 if len(doses) else None, 0.0 if len(times) else None)
    return [control] + [(label, dose, time) for label, dose in dosed for time in at_times]


def _check_sizes(
    n_genes: int,
    n_perturbations: int,
    n_pairs: int,
    cells_per_condition: int,
    cells_control: int,
    n_cell_types: int,
    n_batches: int,
    doses: Sequence[float],
    times: Sequence[float],
    interaction: float,
) -> None:
    if not 1 <= n_perturbations <= n_genes:
        raise ConfigError(f"n_perturbations={n_perturbations} regulators must be among the n_genes={n_genes} genes: take 1 to {n_genes}")
    possible = n_perturbations * (n_perturbations - 1) // 2
    if not 0 <= n_pairs <= possible:
        raise ConfigError(f"n_pairs={n_pairs}, but {n_perturbations} perturbations make {possible} pairs: take 0 to {possible}")
    if min(cells_per_condition, cells_control, n_cell_types, n_batches) < 1:
        raise ConfigError("cells_per_condition, cells_control, n_cell_types and n_batches must be at least 1")
    if any(not dose > 0 for dose in doses) or any(not time > 0 for time in times):
        raise ConfigError(f"doses and times must be positive; the control has dose 0 and time 0. Got doses={doses}, times={times}")
    if not 0.0 <= interaction <= 1.0:
        raise ConfigError(f"interaction={interaction} must lie between 0 (additive) and 1")
