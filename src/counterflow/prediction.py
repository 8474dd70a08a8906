"""The way back: control cells -> states -> moved by the flow -> expected counts -> counts -> AnnData."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from counterflow.data.progress import tracked
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, describe, write_condition
from counterflow.errors import ConfigError, DataError
from counterflow.fitting import exposures
from counterflow.flow.few_step import jump
from counterflow.flow.guidance import broadcasts
from counterflow.flow.solvers import last_step_euler
from counterflow.module import FlowModule
from counterflow.processor import at_work
from counterflow.sampling import JUMP, NO_DRAWS, Sampling
from counterflow.spaces.base import StateSpace, log_normalise
from counterflow.spaces.counts import cell_noises, cell_seeds, draw_nb, round_counts, transport, transport_mean
from counterflow.types import ConditionIds, ConditionSpec

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK = 256  # cells solved together, always as many (padded): with a fixed-step solver no cell's bits depend on its company


@dataclass(frozen=True)
class Correction:
    """What becomes of the flow's end points, by group of cells (K: contexts, mostly); see `counterflow.recentring`.

    The mean displacement of a group is set to `shift`; how the flow spreads its cells around their mean is kept by a share of `spread`.
    """

    shift: Tensor  # K x S
    center: Tensor  # K x S, mean displacement by the flow alone
    spread: Tensor  # K
    anchor: Tensor  # K x S, what was taken off the targets in training: what starts at noise gets it back
    factor: np.ndarray | None  # K x G, multiplies expected counts
    group: np.ndarray  # n, of each cell

    @classmethod
    def none(cls, n: int, n_features: int) -> Correction:
        """The flow as it is."""
        zero = torch.zeros(1, n_features)
        return cls(zero, zero, torch.ones(1), zero, None, np.zeros(n, dtype=np.int64))

    def apply(self, control: Tensor, after: Tensor, rows: np.ndarray) -> Tensor:
        """States from the flow's end points."""
        k = torch.from_numpy(self.group[rows])
        moved = after - control
        return control + self.shift[k] + self.spread[k][:, None] * (moved - self.center[k])

    def rates(self, expected: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Expected counts of genes, from the decoder's."""
        return expected if self.factor is None else expected * self.factor[self.group[rows]]


@torch.no_grad()
def solve(
    module: FlowModule,
    control: Tensor | None,
    noise: Tensor | None,
    ids: ConditionIds,
    factual: ConditionIds,
    how: Sampling,
    draws: Iterator[Tensor] = NO_DRAWS,
) -> Tensor:
    """States under `ids`. A control source starts at the control cells; a noise source at `noise`, or inverts the control cells.

    `draws`: what a stochastic solver adds on the way.
    """
    how = how.suited(module.objective)
    solver, grid = how.resolve(module.source, draws)
    ids, factual = _once(ids, module), _once(factual, module)
    guided = partial(
        module.velocity, ids, origin=control if module.origin is not None else None, guidance=how.guidance,
        guidance_kind=how.guidance_kind, guidance_interval=how.guidance_interval, combine=how.combine,
    )  # fmt: skip
    last = last_step_euler if module.prediction == "x" else None
    if module.source == "control":
        assert control is not None
        x0 = control
    elif noise is not None:
        x0 = noise
    else:
        assert control is not None
        x0 = solver(module.velocity(factual), control, grid.flip(0))  # fp32 always: an inversion adds its errors up
        if how.solver == "dopri5":
            last = None  # the way there is the way back: what was inverted to a tolerance comes back to it
    solver = solver if last is None else last(solver)
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=how.precision == "bf16-mixed"):
        if how.solver == JUMP:
            return jump(lambda x, t, r: guided(until=r)(x, t), x0, grid)
        return solver(guided(), x0, grid)


def _once(ids: ConditionIds, module: FlowModule) -> ConditionIds:
    """One row for all cells where they share it. Not where a model reads covariates: a cell's bits would depend on its company's."""
    able = broadcasts(module.backbone) and module.origin is None
    same = able and not ids.covariates.shape[1] and all(bool((part == part[:1]).all()) for part in ids)
    return ConditionIds(*(part[:1] for part in ids)) if same else ids


def solved(module: FlowModule, control: Tensor, seeds: np.ndarray, ids: ConditionIds, factual: ConditionIds, how: Sampling) -> Tensor:
    """States of given control cells under `ids`; whatever is random belongs to a cell, by its number in `seeds`."""
    how = how.suited(module.objective)
    if module.source == "control" or how.inverts(module.source, module.coupling):
        return solve(module, control, None, ids, factual, how)
    return solve_from_noise(module, control, seeds, ids, factual, how)


def solve_from_noise(
    module: FlowModule, control: Tensor, seeds: np.ndarray, ids: ConditionIds, factual: ConditionIds, how: Sampling
) -> Tensor:
    """States of cells that start at noise of their own."""
    width = control[0].numel()
    draws = (torch.from_numpy(noise).reshape(control.shape).to(control) for noise in cell_noises(how.seed, seeds, width))
    return solve(module, control, next(draws), ids, factual, how, draws)


def displaced(module: FlowModule, control: Tensor, cells: Screen, ids: ConditionIds, factual: ConditionIds, how: Sampling) -> Tensor:
    """What the flow alone moves given controls by (n x S)."""
    return solved(module, control, cell_seeds(cells.cells), ids, factual, how) - control


def in_blocks(function: Callable[[np.ndarray], tuple[np.ndarray, ...]], n: int) -> tuple[np.ndarray, ...]:
    """Call `function` on padded blocks of cell positions and join what it returns."""
    parts = []
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        padded = np.concatenate([rows, np.full(BLOCK - len(rows), rows[-1])])
        parts.append(tuple(values[: len(rows)] for values in function(padded)))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def counterfactual(
    module: FlowModule,
    space: StateSpace,
    cells: Screen,
    ids: ConditionIds,
    factual: ConditionIds,
    correction: Correction,
    how: Sampling,
    seeds: np.ndarray,
    device: torch.device,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts (n x G) and their expectation for given control cells; row i of `ids` and of `seeds` belongs to cell i."""
    decoder = how.decoder
    exposure = exposures(space, cells)
    dispersion = space.dispersion.cpu().numpy()

    def block(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        counts = cells.counts[rows]
        control = space.encode(counts, cells.library[rows])
        end = solved(module, control.to(device), seeds[rows], _rows(ids, rows, device), _rows(factual, rows, device), how).cpu()
        after = correction.apply(control, end, rows)
        _check_finite(after)
        expected = correction.rates(space.decode(after, exposure[rows]), rows)
        _check_finite(torch.from_numpy(expected))
        if decoder == "round":
            return round_counts(expected), expected
        if decoder == "sample":
            return draw_nb(expected, dispersion, how.seed, seeds[rows]), expected
        dense, before = counts.toarray(), space.decode(control, exposure[rows])
        _check_finite(torch.from_numpy(before))
        drawn = transport(dense, before, expected, dispersion, how.seed, seeds[rows])
        return drawn, transport_mean(dense, before, expected)

    with at_work(module):
        drawn, expected = in_blocks(block, len(cells.cells))
    return sparse.csr_matrix(drawn.astype(np.float32)), expected.astype(np.float32)


def new_cells(
    module: FlowModule, space: StateSpace, start: Screen, library: np.ndarray, ids: ConditionIds, correction: Correction, how: Sampling,
    seeds: np.ndarray, device: torch.device,
) -> tuple[sparse.csr_matrix, np.ndarray]:  # fmt: skip
    """Counts and expectation of cells that are nobody's counterfactual: started at reference controls or at noise, counts drawn anew."""
    exposure = exposures(space, start) * (library / np.maximum(start.library, 1.0))
    dispersion = space.dispersion.cpu().numpy()

    def block(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        control = space.encode(start.counts[rows], start.library[rows])
        some, way = _rows(ids, rows, device), solve_from_noise if module.source == "noise" else solved
        end = way(module, control.to(device), seeds[rows], some, some, how).cpu()
        moved = way is solved
        after = correction.apply(control, end, rows) if moved else end + correction.anchor[torch.from_numpy(correction.group[rows])]
        _check_finite(after)
        expected = correction.rates(space.decode(after, exposure[rows]), rows)
        _check_finite(torch.from_numpy(expected))
        drawn = round_counts(expected) if space.decoder == "round" else draw_nb(expected, dispersion, how.seed, seeds[rows])
        return drawn, expected

    with at_work(module):
        drawn, expected = in_blocks(block, len(start.cells))
    return sparse.csr_matrix(drawn.astype(np.float32)), expected.astype(np.float32)


def _rows(ids: ConditionIds, rows: np.ndarray, device: torch.device) -> ConditionIds:
    index = torch.from_numpy(rows)
    return ConditionIds(*(column[index].to(device) for column in ids))


def _check_finite(state: Tensor) -> None:
    if not torch.isfinite(state).all():
        raise DataError("the flow left the finite numbers: lower guidance, or take more solver steps (n_steps)")


def to_anndata(
    counts: sparse.csr_matrix, expected: np.ndarray, library: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]
) -> AnnData:
    """The answer: X = log1p of counts per 10,000, ``layers["counts"]``, ``layers["mean"]``."""
    from anndata import AnnData

    return AnnData(
        X=log_normalise(counts, library), obs=obs, var=var, layers={"counts": counts, "mean": expected}, uns={"counterflow": uns}
    )


def describe_rows(
    obs: pd.DataFrame, spec: ConditionSpec, setup: Setup, cells: Sequence[str], support: Sequence[str], again: np.ndarray
) -> pd.DataFrame:
    """What every predicted cell carries: the obs of its control, its condition, source cell and support label.

    `again`: how often each cell was used before; see `occurrences`.
    """
    out = obs.copy()
    write_condition(out, spec, setup)
    name = describe(spec, setup)
    if "condition" not in setup.obs_keys:  # the screen's own column stays what it is
        out["condition"] = name
    out["source_cell"], out["support"] = list(cells), list(support)
    out.index = pd.Index([f"{cell}|{name}" + (f"|{n + 1}" if n else "") for cell, n in zip(cells, again, strict=True)], dtype=str)
    return out


def occurrences(names: Sequence[str]) -> np.ndarray:
    """How many equal names came before each: a control may be used more than once."""
    codes = pd.factorize(np.asarray(names, dtype=object))[0]
    return pd.Series(codes).groupby(codes, sort=False).cumcount().to_numpy()


@dataclass(frozen=True)
class Blocks:
    """How a prediction is cut: at most so many cells together, whether a bar is shown, and how many blocks are there already."""

    cells: int
    progress: bool
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ConfigError(f"cells_per_block={self.cells}: at least one cell must come at a time")
        if self.skipped < 0:
            raise ConfigError(f"skip_blocks={self.skipped}: must not be negative")


def blocks_of(sizes: Sequence[int], most: Blocks | None) -> Iterator[tuple[int, slice]]:
    """(number of the condition, its cells), condition after condition; every one at once, where nothing limits them."""
    step = BLOCK * max(1, -(-most.cells // BLOCK)) if most is not None else max([1, *sizes])  # whole blocks of the solver: no padding
    parts = [(i, slice(start, min(start + step, n))) for i, n in enumerate(sizes) for start in range(0, n, step)]
    done, parts = (parts[: most.skipped], parts[most.skipped :]) if most is not None else ([], parts)
    if most is None or not most.progress:
        yield from parts
        return
    sizes, before = ([part.stop - part.start for _, part in some] for some in (parts, done))
    yield from tracked(parts, "generating cells", sizes, sum(before))


def made_by(config: dict[str, Any], how: Sampling, specs: Sequence[ConditionSpec], setup: Setup) -> dict[str, Any]:
    """How a prediction was made, for ``uns["counterflow"]``."""
    from counterflow import __version__

    return {
        "version": __version__,
        "conditions": [describe(spec, setup) for spec in specs],
        "control": setup.control,
        "model": {key: str(config[key]) for key in ("backbone", "space", "source", "coupling", "conditioning", "seed")},
        "sampling": how.describe(config["source"], config["coupling"]),
    }


def stack(blocks: list[AnnData], setup: Setup) -> AnnData:
    """One AnnData of the cells of several conditions."""
    import anndata

    if len(blocks) == 1:
        return blocks[0]
    out = anndata.concat(blocks, merge="same", uns_merge="first")
    out.var = blocks[0].var.copy()
    if setup.dose_key is not None and len({block.obs[setup.dose_key].dtype for block in blocks}) > 1:
        out.obs[setup.dose_key] = out.obs[setup.dose_key].astype(str)  # "1" beside "1+2": a file holds one kind of value
    return out
