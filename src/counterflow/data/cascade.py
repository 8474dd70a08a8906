"""The simulated cell: a regulatory cascade, regulator -> program -> gene, seen through negative-binomial counts.

::

    activity  = activity of the cell's regulators (type, state)       + what the perturbation adds
    program   = gate(type, state) * response(activity @ regulator_to_program)       response: linear -> tanh with `interaction`
    log rate  = base + type + batch + state + program @ program_to_gene + own gene of each regulator
    counts    ~ NB(library * softmax(log rate), dispersion of the gene)

Non-additivity has two causes, both switched by `interaction`: a program saturates, and some programs amplify or mask others.

The numbers below are frozen: they were chosen so that split-half reproducibility and non-additivity look like those of real screens,
before any model was fitted, and results are comparable only as long as nobody touches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_STATE = 4  # latent dimensions of the continuous state within a cell type
MEDIAN_LIBRARY = 2500.0  # UMIs per cell over the measured genes
SATURATION = 0.8  # the largest output of a saturating program, before its loadings on genes (natural-log units)
LINEAR_GAIN = 0.5  # of the additive screen: the chord of the saturating response, so that both have effects of like size
TARGET_SUM = 1e4  # of the log1p normalisation


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
    half_dose: float | None = None  # Hill curve of a compound; None for a gene, whose dose is 1
    slope: float = 1.0

    def strength(self, dose: float, time: float | None) -> float:
        """Fraction of the full effect at this dose and time; 0 at dose 0 and at time 0."""
        at_dose = min(dose, 1.0) if self.half_dose is None else dose**self.slope / (dose**self.slope + self.half_dose**self.slope)
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


def log_rate(biology: Biology, cells: CellStates, activity: np.ndarray, own_gene: np.ndarray) -> np.ndarray:
    """Log rate (B, G) of cells whose regulators' activity and own genes are changed by `activity` and `own_gene` (R,)."""
    gate = biology.type_gate[cells.cell_type] * (1.0 + 0.3 * np.tanh(cells.state @ biology.state_gate))
    at_rest = cells.activity @ biology.regulator_to_program
    programs = gate * _response(at_rest, biology.interaction)
    change = gate * _response(at_rest + activity @ biology.regulator_to_program, biology.interaction) - programs
    rate = biology.base + biology.type_to_gene[cells.cell_type] + biology.batch_to_gene[cells.batch] + cells.state @ biology.state_to_gene
    rate = rate + (programs + _interact(biology, change)) @ biology.program_to_gene
    rate[:, biology.regulators] += 0.8 * cells.activity + own_gene
    return rate


def _response(drive: np.ndarray, interaction: float) -> np.ndarray:
    """Output of a program: linear without interaction, saturating with it."""
    return (1.0 - interaction) * LINEAR_GAIN * drive + interaction * SATURATION * np.tanh(drive / SATURATION)


def _interact(biology: Biology, change: np.ndarray) -> np.ndarray:
    """Programs acting on one another: what becomes of their `change` (B, P) when several move at once."""
    moved, result = np.tanh(change), change.copy()
    for p, q, strength in biology.maskings:
        result[:, q] *= 1.0 - biology.interaction * strength * np.abs(moved[:, p])
    for p, q, s, strength in biology.synergies:
        result[:, s] += biology.interaction * strength * moved[:, p] * moved[:, q]
    return result


def softmax(log_rate: np.ndarray) -> np.ndarray:
    """Shares of the library (B, G) from log rates."""
    rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
    return rate / rate.sum(axis=1, keepdims=True)


def draw_counts(rng: np.random.Generator, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Negative-binomial counts (B, G) around `mean`, as gamma-Poisson."""
    return rng.poisson(rng.gamma(dispersion, mean / dispersion))


def draw_biology(rng: np.random.Generator, n_genes: int, n_regulators: int, n_types: int, n_batches: int, interaction: float) -> Biology:
    """A cascade: each regulator drives two to four programs, each program 14 % of the genes."""
    n_programs = max(4, n_regulators // 2)
    regulators = np.sort(rng.choice(n_genes, n_regulators, replace=False))
    base = rng.normal(0.0, 1.0, n_genes)
    base[regulators] = np.abs(rng.normal(0.3, 0.4, n_regulators))  # expressed well enough to be measured

    regulator_to_program = np.zeros((n_regulators, n_programs))
    for r in range(n_regulators):
        targets = rng.choice(n_programs, rng.integers(2, 5), replace=False)
        regulator_to_program[r, targets] = rng.uniform(0.6, 1.2, len(targets)) * rng.choice([-1.0, 1.0], len(targets), p=[0.3, 0.7])
    program_to_gene = _sparse(rng, n_programs, n_genes, density=0.14, scale=0.8, positive=0.6)

    type_gate = np.where(rng.random((n_types, n_programs)) < 0.75, 1.0, 0.15)
    type_gate[rng.integers(n_types, size=n_programs), np.arange(n_programs)] = 1.0  # every program can respond in some type
    # Every program is amplified by one couple of others; six in ten are masked by another one.
    sources = [rng.choice(np.delete(np.arange(n_programs), s), 2, replace=False) for s in range(n_programs)]
    masked = rng.choice(n_programs, round(0.6 * n_programs), replace=False)
    maskers = [rng.choice(np.delete(np.arange(n_programs), q)) for q in masked]
    return Biology(
        regulators=regulators,
        base=base,
        type_to_gene=_sparse(rng, n_types, n_genes, density=0.2, scale=0.6, positive=0.5),
        batch_to_gene=rng.normal(0.0, 0.1, (n_batches, n_genes)),
        state_to_gene=_sparse(rng, N_STATE, n_genes, density=0.2, scale=0.25, positive=0.5),
        type_to_regulator=rng.normal(0.0, 0.2, (n_types, n_regulators)),
        state_to_regulator=rng.normal(0.0, 0.1, (N_STATE, n_regulators)),
        regulator_to_program=regulator_to_program,
        program_to_gene=program_to_gene,
        type_gate=type_gate,
        state_gate=rng.normal(0.0, 0.5, (N_STATE, n_programs)),
        dispersion=rng.lognormal(np.log(6.0), 0.5, n_genes),
        synergies=tuple((int(p), int(q), s, float(rng.choice([-1.0, 1.0]) * rng.uniform(1.5, 2.5))) for s, (p, q) in enumerate(sources)),
        maskings=tuple((int(p), int(q), float(rng.uniform(0.6, 1.0))) for p, q in zip(maskers, masked, strict=True)),
        interaction=float(interaction),
    )


def _sparse(rng: np.random.Generator, rows: int, columns: int, density: float, scale: float, positive: float) -> np.ndarray:
    """Signed weights of log-normal size around `scale`, a share `density` of each row not zero and a share `positive` of those positive."""
    size = rng.lognormal(np.log(scale), 0.4, (rows, columns))
    sign = np.where(rng.random((rows, columns)) < positive, 1.0, -1.0)
    rank = np.argsort(np.argsort(rng.random((rows, columns)), axis=1), axis=1)
    return np.where(rank < round(density * columns), sign * size, 0.0)


def draw_perturbations(
    rng: np.random.Generator, biology: Biology, gene_names: list[str], n_compounds: int, doses: Sequence[float], times: Sequence[float]
) -> dict[str, Perturbation]:
    """Genes, then compounds. Strengths are spread evenly and shuffled: a screen has strong and weak perturbations."""
    n = len(biology.regulators)
    strength = rng.permutation(np.linspace(0.8, 2.4, n))
    activates = rng.permutation(np.arange(n) % 2 == 0)
    span = float(np.median(times)) if len(times) else 1.0
    result = {}
    for r, gene in enumerate(biology.regulators):
        one = np.eye(n)[r]
        activity, own_gene = (strength[r], 1.1) if activates[r] else (-strength[r], -1.0)  # three-fold up, or down to 37 %
        result[gene_names[gene]] = Perturbation(one * activity, one * own_gene, tau=span * rng.uniform(0.4, 1.6))
    for compound in range(n_compounds):
        activity = np.zeros(n)
        activity[rng.choice(n, 2, replace=False)] = rng.uniform(1.0, 2.4, 2) * rng.choice([-1.0, 1.0], 2)
        half_dose = float(np.exp(rng.uniform(np.log(min(doses)), np.log(max(doses)))))  # doses are positive: checked
        slope, tau = rng.uniform(0.8, 1.6), span * rng.uniform(0.4, 1.6)
        result[f"C{compound:02d}"] = Perturbation(activity, 0.0 * activity, tau, half_dose, slope)
    return result


def draw_cells(rng: np.random.Generator, biology: Biology, n: int) -> CellStates:
    """The states of `n` cells: type, batch, continuous state, regulator activity, depth."""
    n_types, n_batches = len(biology.type_gate), len(biology.batch_to_gene)
    abundance = 0.7 ** np.arange(n_types)
    cell_type = rng.choice(n_types, n, p=abundance / abundance.sum())
    batch = rng.integers(n_batches, size=n)
    state = rng.normal(size=(n, N_STATE))
    activity = biology.type_to_regulator[cell_type] + state @ biology.state_to_regulator
    activity += rng.normal(0.0, 0.2, activity.shape)
    depth = np.log(MEDIAN_LIBRARY) + 0.2 * (batch - (n_batches - 1) / 2)
    return CellStates(cell_type, batch, state, activity, np.exp(depth + rng.normal(0.0, 0.35, n)))
