"""Batches of states for training: what the sampler planned, looked up in the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from counterflow.data.ahead import ahead
from counterflow.data.sampler import Sampler
from counterflow.types import Batch, ConditionIds


@dataclass(frozen=True)
class Cells:
    """Training cells by row: states are looked up (small states) or encoded on demand (large ones)."""

    states: Callable[[np.ndarray], Tensor]  # rows -> n x S
    library: Tensor  # n
    covariates: Tensor  # n x M, levels as integers
    on_disk: bool = False  # then the next batches are read while a step is computed


@dataclass(frozen=True)
class Conditions:
    """One row per condition of the group table."""

    ids: ConditionIds  # covariates unused: they belong to cells
    shift: Tensor  # P x S, what the additive rule already explains of the target's state


class StepDataset(IterableDataset[Batch]):
    """Batches number `start` to `stop`; each is a pure function of the sampler's seed and its number."""

    def __init__(self, sampler: Sampler, cells: Cells, conditions: Conditions, *, start: int, stop: int, names: Sequence[str] = ()) -> None:
        self.sampler, self.cells, self.conditions = sampler, cells, conditions
        self.start, self.stop = start, stop
        self.names = names  # of the groups, for messages

    def share(self, rank: int, world_size: int) -> StepDataset:
        """The same steps, of which one of several processes computes its sets.

        All cells of a step are read by all of them: a set is paired together with the other sets of its group, and random numbers come in
        the order of the whole step. So a run has the same result on any number of devices.

        Raises
        ------
        ConfigError
            If the sets cannot be shared evenly.
        """
        sampler = replace(self.sampler, rank=rank, world_size=world_size)
        return StepDataset(sampler, self.cells, self.conditions, start=self.start, stop=self.stop, names=self.names)

    def __len__(self) -> int:
        return self.stop  # of the whole run: Lightning counts the batches before a resumed `start`, too

    def __iter__(self) -> Iterator[Batch]:
        steps = (self.batch(step) for step in range(self.start, self.stop))
        yield from ahead(steps) if self.cells.on_disk else steps

    def batch(self, step: int) -> Batch:
        """The batch of one optimiser step."""
        target, control, group = self.sampler.draw(step)
        code = torch.from_numpy(self.sampler.groups.condition[group])
        table, cells = self.conditions.ids, torch.from_numpy(target)
        return Batch(
            target=self.cells.states(target) - self.conditions.shift[code],
            control=self.cells.states(control),
            ids=ConditionIds(table.perturbation[code], table.dose[code], table.time[code], self.cells.covariates[cells]),
            group=torch.from_numpy(group),
            library=self.cells.library[cells],
            own=torch.from_numpy(self.sampler.own()) if self.sampler.world_size > 1 else None,
        )
