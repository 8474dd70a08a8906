"""A perturb-seq screen with known truth: the data every demonstration, test and benchmark can fall back on.

A cell is a gene-regulatory cascade, regulator -> program -> gene, seen through negative-binomial counts::

    activity  = activity of its regulators from cell type and state            + what the perturbation adds
    program   = gate(cell type, state) * response(activity @ regulator_to_program)      response: linear -> tanh with `interaction`
    log rate  = base + type + batch + state + program @ program_to_gene + own gene of each regulator
    counts    ~ NB(library * softmax(log rate), dispersion of the gene)

Regulators are measured genes, and their activity varies from cell to cell along the same cascade, so the co-expression of control
cells says something about what a perturbation does. Non-additivity has two causes, both switched by `interaction`: a program
saturates, and some programs amplify or mask others. Numbers were chosen to look like a screen, before any model was fitted to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from counterflow.data.labels import parts
from counterflow.errors import ConfigError, DataError, near

SMALL = dict(n_genes=60, n_perturbations=6, n_pairs=6, cells_per_condition=25, cells_control=120, n_cell_types=2)
"""Arguments of the small screen used by tests: ``simulate_screen(**SMALL)``."""

N_STATE = 4  # latent dimensions of the continuous state within a cell type
MEDIAN_LIBRARY = 2500.0  # UMIs per cell over the measured genes
SATURATION = 1.2  # a program's response is at most this (natural-log units of its target genes, before loadings)
TARGET_SUM = 1e4  # of the log1p normalisation in `true_mean`


@dataclass(frozen=True)
class Biology:
    """What is true of every cell: the cascade, and what each perturbation does to it. R regulators, P programs, T types, L state."""

    regulators: np.ndarray  # (R,) gene of each regulator
    base: np.ndarray  # (G,) log rate
    type_to_gene: np.ndarray  # (T, G)
    batch_to_gene: np.ndarray  # (batches, G)
    state_to_gene: np.ndarray  # (L, G)
    type_to_regulator: np.ndarray  # (T, R)
    state_to_regulator: np.ndarray  # (L, R)
    regulator_to_program: np.ndarray  # (R, P)
    program_to_gene: np.ndarray  # (P, G)
    type_gate: np.ndarray  # (T, P) how responsive a program is in a cell type
    state_gate: np.ndarray  # (L, P) how this varies with the state
    dispersion: np.ndarray  # (G,) NB inverse dispersion: variance = mean + mean^2 / dispersion
    synergies: tuple[tuple[int, int, int, float], ...]  # (p, q, s, strength): p and q together move s
    maskings: tuple[tuple[int, int, float], ...]  # (p, q, strength): p moved, q answers less
    interaction: float


@dataclass(frozen=True)
class Perturbation:
    """One gene or compound: the change in regulator activity and own expression at full effect, and its dose and time course."""

    activity: np.ndarray  # (R,)
    own_gene: np.ndarray  # (R,) log rate of the regulators' own genes
    tau: float  # time constant, in the units of `times`
    half_dose: float | None = None  # Hill curve of a compound; None for a gene, whose dose simply scales
    slope: float = 1.0

    def strength(self, dose: float, time: float | None) -> float:
        """Fraction of the full effect at this dose and time; 0 at dose 0 and at time 0."""
        at_dose = dose if self.half_dose is None else dose**self.slope / (dose**self.slope + self.half_dose**self.slope)
        return at_dose * (1.0 if time is None else 1.0 - float(np.exp(-time / self.tau)))


@dataclass(frozen=True)
class CellStates:
    """What is true of each cell before any perturbation, row by row."""

    cell_type: np.ndarray  # (B,)
    batch: np.ndarray  # (B,)
    state: np.ndarray  # (B, L)
    activity: np.ndarray  # (B, R) of the regulators
    library: np.ndarray  # (B,) expected UMIs

    def take(self, rows: np.ndarray) -> CellStates:
        """The cells at `rows`."""
        return CellStates(self.cell_type[rows], self.batch[rows], self.state[rows], self.activity[rows], self.library[rows])


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
        return _log_rate(self.biology, chosen, *self._perturb(condition, dose, time))

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
            Needed for compounds; 1 for genes when not given.
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
        return self.cells.library[rows, None] * _softmax(log_rate)

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
    biology = _draw_biology(cascade_rng, n_genes, n_perturbations, n_cell_types, n_batches, interaction)
    gene_names = [f"G{gene:03d}" for gene in range(n_genes)]
    perturbations = _draw_perturbations(design_rng, biology, gene_names, n_compounds if len(doses) else 0, doses, times)
    conditions = _design(design_rng, perturbations, n_pairs, doses, times)

    sizes = [cells_control] + [cells_per_condition] * len(conditions)
    which = cell_rng.permutation(np.repeat(np.arange(-1, len(conditions)), sizes))  # -1 is the control; the order carries no information
    cells = _draw_cells(cell_rng, biology, len(which))
    obs = pd.DataFrame(index=[f"cell{row:06d}" for row in range(len(which))])
    labels = ["control", *dict.fromkeys(label for label, _, _ in conditions)]
    obs["perturbation"] = pd.Categorical([conditions[c][0] if c >= 0 else "control" for c in which], categories=labels)
    obs["cell_type"] = pd.Categorical([f"type{cell_type}" for cell_type in cells.cell_type])
    obs["batch"] = pd.Categorical([f"batch{batch}" for batch in cells.batch])
    if len(doses):
        obs["dose"] = [conditions[c][1] if c >= 0 else 0.0 for c in which]
    if len(times):
        obs["time"] = [conditions[c][2] if c >= 0 else 0.0 for c in which]

    arguments = dict(
        n_genes=n_genes,
        n_perturbations=n_perturbations,
        n_pairs=n_pairs,
        n_compounds=n_compounds,
        cells_per_condition=cells_per_condition,
        cells_control=cells_control,
        n_cell_types=n_cell_types,
        n_batches=n_batches,
        doses=[float(dose) for dose in doses],
        times=[float(time) for time in times],
        interaction=float(interaction),
        seed=seed,
    )
    adata = AnnData(X=csr_matrix((len(which), n_genes), dtype=np.float32), obs=obs, var=pd.DataFrame(index=gene_names))
    adata.uns["simulation"] = arguments
    screen = SimulatedScreen(adata, biology, perturbations, cells)
    counts = np.zeros((len(which), n_genes), dtype=np.float32)
    for number in range(-1, len(conditions)):
        rows = np.flatnonzero(which == number)
        condition = conditions[number] if number >= 0 else ("control", None, None)
        counts[rows] = _draw_counts(count_rng, screen.counterfactual(rows, *condition), biology.dispersion)
    adata.X = csr_matrix(counts)
    adata.obs["n_counts"] = counts.sum(axis=1)
    return screen


def expected_log1p(mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """E[log1p(1e4 * x_g / sum(x))] of independent negative-binomial counts x, exactly but for quadrature.

    With log a = integral over s > 0 of (exp(-s) - exp(-s a)) ds / s, the expectation of log(sum(x) + 1e4 x_g) - log(sum(x)) needs
    only the Laplace transforms phi_g(s) = (1 + mean_g (1 - exp(-s)) / dispersion_g) ** -dispersion_g::

        integral of prod_h phi_h(s) * (1 - phi_g((1 + 1e4) s) / phi_g(s)) ds / s

    which is smooth in log s, so that the trapezoidal rule converges exponentially fast.

    Parameters
    ----------
    mean
        Expected counts, cells x genes; the expected library should exceed about 20 counts (an empty cell has no log1p expression).
    dispersion
        Inverse dispersion of each gene.

    Returns
    -------
    Cells x genes.
    """
    log_s = np.linspace(np.log(1e-13), np.log(2.0), 56)
    total = np.zeros_like(mean)
    for s in np.exp(log_s):
        log_phi = -dispersion * np.log1p(mean * (-np.expm1(-s) / dispersion))
        scaled = -dispersion * np.log1p(mean * (-np.expm1(-s * (1.0 + TARGET_SUM)) / dispersion))
        total -= np.exp(log_phi.sum(axis=1, keepdims=True)) * np.expm1(scaled - log_phi)
    return total * (log_s[1] - log_s[0])


def _log_rate(biology: Biology, cells: CellStates, activity: np.ndarray, own_gene: np.ndarray) -> np.ndarray:
    """Log rate (B, G) of cells whose regulators' activity and own genes are changed by `activity` and `own_gene` (R,)."""
    gate = biology.type_gate[cells.cell_type] * (1.0 + 0.3 * np.tanh(cells.state @ biology.state_gate))
    at_rest = cells.activity @ biology.regulator_to_program
    programs = gate * _response(at_rest, biology.interaction)
    change = gate * _response(at_rest + activity @ biology.regulator_to_program, biology.interaction) - programs
    rate = biology.base + biology.type_to_gene[cells.cell_type] + biology.batch_to_gene[cells.batch] + cells.state @ biology.state_to_gene
    rate = rate + (programs + _interact(biology, change)) @ biology.program_to_gene
    rate[:, biology.regulators] += 0.5 * cells.activity + own_gene
    return rate


def _response(drive: np.ndarray, interaction: float) -> np.ndarray:
    """Output of a program: linear without interaction, saturating with it."""
    return (1.0 - interaction) * drive + interaction * SATURATION * np.tanh(drive / SATURATION)


def _interact(biology: Biology, change: np.ndarray) -> np.ndarray:
    """Programs acting on one another: what becomes of their `change` (B, P) when several move at once."""
    moved, result = np.tanh(change), change.copy()
    for p, q, strength in biology.maskings:
        result[:, q] *= 1.0 - biology.interaction * strength * np.abs(moved[:, p])
    for p, q, s, strength in biology.synergies:
        result[:, s] += biology.interaction * strength * moved[:, p] * moved[:, q]
    return result


def _softmax(log_rate: np.ndarray) -> np.ndarray:
    rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
    return rate / rate.sum(axis=1, keepdims=True)


def _draw_counts(rng: np.random.Generator, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    return rng.poisson(rng.gamma(dispersion, mean / dispersion))


def _draw_biology(rng: np.random.Generator, n_genes: int, n_regulators: int, n_types: int, n_batches: int, interaction: float) -> Biology:
    n_programs = max(4, round(0.6 * n_regulators))
    regulators = np.sort(rng.choice(n_genes, n_regulators, replace=False))
    base = rng.normal(0.0, 1.0, n_genes)
    base[regulators] = np.abs(rng.normal(0.3, 0.4, n_regulators))  # expressed well enough to be measured

    regulator_to_program = np.zeros((n_regulators, n_programs))
    for r in range(n_regulators):
        targets = rng.choice(n_programs, rng.integers(2, 4), replace=False)
        regulator_to_program[r, targets] = rng.uniform(0.6, 1.2, len(targets)) * rng.choice([-1.0, 1.0], len(targets), p=[0.3, 0.7])
    program_to_gene = _sparse(rng, n_programs, n_genes, density=0.14, scale=0.55, positive=0.75)

    type_gate = np.where(rng.random((n_types, n_programs)) < 0.75, 1.0, 0.15)
    type_gate[rng.integers(n_types, size=n_programs), np.arange(n_programs)] = 1.0  # every program can respond in some type
    triples = [rng.choice(n_programs, 3, replace=False) for _ in range(max(2, round(0.6 * n_programs)))]
    couples = [rng.choice(n_programs, 2, replace=False) for _ in range(max(1, round(0.4 * n_programs)))]
    return Biology(
        regulators=regulators,
        base=base,
        type_to_gene=_sparse(rng, n_types, n_genes, density=0.3, scale=0.8, positive=0.5),
        batch_to_gene=rng.normal(0.0, 0.1, (n_batches, n_genes)),
        state_to_gene=_sparse(rng, N_STATE, n_genes, density=0.2, scale=0.3, positive=0.5),
        type_to_regulator=rng.normal(0.0, 0.4, (n_types, n_regulators)),
        state_to_regulator=rng.normal(0.0, 0.2, (N_STATE, n_regulators)),
        regulator_to_program=regulator_to_program,
        program_to_gene=program_to_gene,
        type_gate=type_gate,
        state_gate=rng.normal(0.0, 0.5, (N_STATE, n_programs)),
        dispersion=rng.lognormal(np.log(6.0), 0.5, n_genes),
        synergies=tuple((int(p), int(q), int(s), float(rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.2))) for p, q, s in triples),
        maskings=tuple((int(p), int(q), float(rng.uniform(0.6, 1.0))) for p, q in couples),
        interaction=float(interaction),
    )


def _sparse(rng: np.random.Generator, rows: int, columns: int, density: float, scale: float, positive: float) -> np.ndarray:
    """Sparse signed weights of log-normal size around `scale`; a share `positive` of them is positive."""
    size = rng.lognormal(np.log(scale), 0.4, (rows, columns))
    sign = np.where(rng.random((rows, columns)) < positive, 1.0, -1.0)
    return np.where(rng.random((rows, columns)) < density, sign * size, 0.0)


def _draw_perturbations(
    rng: np.random.Generator, biology: Biology, gene_names: list[str], n_compounds: int, doses: Sequence[float], times: Sequence[float]
) -> dict[str, Perturbation]:
    """Genes, then compounds. Strengths are spread evenly and shuffled: a screen has strong and weak perturbations."""
    n = len(biology.regulators)
    strength = rng.permutation(np.linspace(0.5, 1.7, n))
    activates = rng.permutation(np.arange(n) % 2 == 0)
    span = float(np.median(times)) if len(times) else 1.0
    result = {}
    for r, gene in enumerate(biology.regulators):
        one = np.eye(n)[r]
        activity, own_gene = (strength[r], 1.1) if activates[r] else (-strength[r], -1.0)  # three-fold up, or down to 37 %
        result[gene_names[gene]] = Perturbation(one * activity, one * own_gene, tau=span * rng.uniform(0.4, 1.6))
    for compound in range(n_compounds):
        activity = np.zeros(n)
        activity[rng.choice(n, 2, replace=False)] = rng.uniform(0.8, 1.7, 2) * rng.choice([-1.0, 1.0], 2)
        half_dose = float(np.exp(rng.uniform(np.log(min(doses)), np.log(max(doses)))))  # doses are positive: checked
        slope, tau = rng.uniform(0.8, 1.6), span * rng.uniform(0.4, 1.6)
        result[f"C{compound:02d}"] = Perturbation(activity, 0.0 * activity, tau, half_dose, slope)
    return result


def _design(
    rng: np.random.Generator, perturbations: dict[str, Perturbation], n_pairs: int, doses: Sequence[float], times: Sequence[float]
) -> list[tuple[str, float | None, float | None]]:
    """The measured conditions as (label, dose, time); dose None where it is 1 by definition of the unit."""
    genes = [name for name, perturbation in perturbations.items() if perturbation.half_dose is None]
    pairs = list(combinations(genes, 2))
    chosen = np.sort(rng.choice(len(pairs), n_pairs, replace=False))
    labels: list[tuple[str, float]] = [(gene, 1.0) for gene in genes] + [("+".join(pairs[i]), 1.0) for i in chosen]
    labels += [(name, float(dose)) for name in perturbations if name not in genes for dose in doses]
    at_times: list[float | None] = [float(time) for time in times] or [None]
    return [(label, dose, time) for label, dose in labels for time in at_times]


def _draw_cells(rng: np.random.Generator, biology: Biology, n: int) -> CellStates:
    n_types, n_batches = len(biology.type_gate), len(biology.batch_to_gene)
    abundance = 0.7 ** np.arange(n_types)
    cell_type = rng.choice(n_types, n, p=abundance / abundance.sum())
    batch = rng.integers(n_batches, size=n)
    state = rng.normal(size=(n, N_STATE))
    activity = biology.type_to_regulator[cell_type] + state @ biology.state_to_regulator
    activity += rng.normal(0.0, 0.4, activity.shape)
    depth = np.log(MEDIAN_LIBRARY) + 0.2 * (batch - (n_batches - 1) / 2)
    return CellStates(cell_type, batch, state, activity, np.exp(depth + rng.normal(0.0, 0.35, n)))


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
