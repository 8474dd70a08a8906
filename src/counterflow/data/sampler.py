"""Which cells make up a training step: sets of cells of one condition and context, with as many controls of the same context.

The sampler is a pure function of (seed, step): it keeps no random state. To resume at step k, ask for step k; prefetching threads and
other numbers of devices give the same global stream. Every set of a step is one group (condition x context), so that target and control
can be paired inside it and condition and cell can never come apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from counterflow.data.split_file import SEPARATOR
from counterflow.errors import ConfigError, DataError, near

WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": lambda sizes: np.ones(len(sizes)),  # every condition counts the same, however few its cells
    "sqrt": np.sqrt,
    "proportional": lambda sizes: sizes.astype(float),  # every cell counts the same
}
"""Weight of a group from its number of cells."""

TARGETS, CONTROLS = 1, 2  # streams of random numbers that must not meet (0: the plan of a step)


@dataclass(frozen=True)
class GroupTable:
    """Groups of cells that may be paired: all cells of a condition in a context, and the controls of that context.

    Attributes
    ----------
    condition, context
        Integer codes of each group.
    targets, controls
        Row numbers of its cells and of the controls of its context; the same rows in a group of control cells.
    probability
        How often a set is drawn from it; sums to 1.
    """

    condition: np.ndarray
    context: np.ndarray
    targets: tuple[np.ndarray, ...]
    controls: tuple[np.ndarray, ...]
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n_cells(self) -> int:
        """Number of target cells over all groups."""
        return sum(len(rows) for rows in self.targets)

    def small_groups(self, set_size: int) -> int:
        """How many groups have fewer cells than a set, so that their cells repeat within it."""
        return sum(len(rows) < set_size for rows in self.targets)


def build_groups(
    condition: np.ndarray,
    context: np.ndarray,
    is_control: np.ndarray,
    rows: np.ndarray | None = None,
    *,
    weighting: str = "sqrt",
    context_names: Sequence[str] | None = None,
    match_keys: Sequence[str] = (),
) -> GroupTable:
    """Group the training cells by condition and context, and match each group with the controls of its context.

    Parameters
    ----------
    condition, context, is_control
        One entry per cell (int64, int64, bool). All control cells of a context are one group, whatever their condition code.
    rows
        Row numbers of these cells in the matrix; 0 ... n-1 when not given. Cells that are not listed never enter a step.
    weighting
        `uniform` | `sqrt` | `proportional`: how often a group is drawn, from its number of cells.
    context_names, match_keys
        Names for the error message: of each context code, its levels joined by " | " in the order of `match_keys`.

    Raises
    ------
    DataError
        If there are no cells, or a context has perturbed cells and no control.
    ConfigError
        For an unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ConfigError(f"no weighting of groups is called {weighting!r}: {near(weighting, WEIGHTINGS)}")
    condition, context, is_control = np.asarray(condition), np.asarray(context), np.asarray(is_control, dtype=bool)
    rows = np.arange(len(condition)) if rows is None else np.asarray(rows)
    if not len(condition) == len(context) == len(is_control) == len(rows):
        raise DataError(
            f"condition, context, is_control and rows must have one entry per cell; got {len(condition)}, {len(context)}, "
            f"{len(is_control)}, {len(rows)}"
        )
    if not len(rows):
        raise DataError("there are no training cells: check the split and the filters")
    _check_matched(context, is_control, context_names, match_keys)
    controls = {int(code): rows[is_control & (context == code)] for code in np.unique(context[is_control])}
    # One sort groups millions of cells; the control of each context comes first, under a code that no condition has.
    code = np.where(is_control, np.min(condition) - 1, condition)
    order = np.lexsort((code, context))
    starts = np.flatnonzero(np.r_[True, (np.diff(code[order]) != 0) | (np.diff(context[order]) != 0)])
    targets = tuple(rows[cells] for cells in np.split(order, starts[1:]))
    first = order[starts]
    weight = WEIGHTINGS[weighting](np.array([len(cells) for cells in targets]))
    return GroupTable(
        condition=condition[first],
        context=context[first],
        targets=targets,
        controls=tuple(controls[int(code)] for code in context[first]),
        probability=weight / weight.sum(),
    )


def _check_matched(context: np.ndarray, is_control: np.ndarray, names: Sequence[str] | None, match_keys: Sequence[str]) -> None:
    controlled = set(np.unique(context[is_control]).tolist())
    perturbed, n_cells = np.unique(context[~is_control], return_counts=True)
    without = [(int(code), int(n)) for code, n in zip(perturbed, n_cells, strict=True) if int(code) not in controlled]
    if not without:
        return
    if not controlled:
        raise DataError("there are no control cells among the training cells: check the control label and the split")
    say = [f"{names[code] if names is not None else code!r} ({n} perturbed cells)" for code, n in without[:5]]
    more = f" and {len(without) - 5} more" if len(without) > 5 else ""
    raise DataError(
        f"no control cell to pair with in {', '.join(say)}{more}: {_key_to_drop(controlled, without, names, match_keys)}, "
        "or leave these cells out"
    )


def _key_to_drop(controlled: set[int], without: list[tuple[int, int]], names: Sequence[str] | None, match_keys: Sequence[str]) -> str:
    """The match key without which every context has controls, if there is one."""
    if names is None or not match_keys:
        return "drop a key from match_keys"
    levels = [name.split(SEPARATOR) for name in names]
    for position, key in enumerate(match_keys):
        rest = [tuple(level[:position] + level[position + 1 :]) for level in levels]
        if {rest[code] for code, _ in without} <= {rest[code] for code in controlled}:
            return f"drop {key!r} from match_keys"
    return f"no single one of match_keys {list(match_keys)} helps: drop several"


@dataclass(frozen=True)
class Sampler:
    """Draws training steps from a GroupTable: `n_sets` sets of `set_size` target cells with as many matched controls.

    Rank r of a `world_size` of W computes the sets r, r + W, ... of the same step (`own`), so all ranks have equally many steps and a run
    may be resumed on another number of devices.

    Examples
    --------
    >>> groups = build_groups(np.array([0, 0, 1, 1]), np.zeros(4, int), np.array([True, True, False, False]))
    >>> targets, controls, group = Sampler(groups, n_sets=2, set_size=4).draw(step=0)
    >>> len(targets), len(controls), len(group)
    (8, 8, 8)
    """

    groups: GroupTable
    n_sets: int = 8
    set_size: int = 64
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if min(self.n_sets, self.set_size, self.world_size) < 1 or not 0 <= self.rank < self.world_size or self.seed < 0:
            raise ConfigError(
                "n_sets, set_size and world_size must be at least 1, 0 <= rank < world_size and seed at least 0; got "
                f"n_sets={self.n_sets}, set_size={self.set_size}, rank={self.rank}, world_size={self.world_size}, seed={self.seed}"
            )
        if self.n_sets % self.world_size:
            below = max(self.world_size, self.n_sets - self.n_sets % self.world_size)
            raise ConfigError(
                f"n_sets={self.n_sets} sets per step cannot be shared evenly by {self.world_size} devices: take "
                f"batch_size={below * self.set_size} ({below} sets of {self.set_size}), or another number of devices"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many target cells were drawn as there are; for reports and schedules only."""
        return -(-self.groups.n_cells // (self.n_sets * self.set_size))

    @property
    def small_groups(self) -> int:
        """Groups with fewer cells than a set: their cells repeat. To be reported once."""
        return self.groups.small_groups(self.set_size)

    def plan(self, step: int) -> list[tuple[int, int]]:
        """(group, offset) of each set of a step.

        The offset says which of its many sets a group gives: `draw` is a function of (seed, group, offset). Where cells lie on disk in
        shuffled groups, a feed may read the run that starts at offset modulo the size of the group instead.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        chosen = np.searchsorted(np.cumsum(self.groups.probability), rng.random(self.n_sets), side="right")
        chosen = np.minimum(chosen, len(self.groups) - 1)  # the sum of the probabilities may end just below 1
        offsets = rng.integers(0, 2**40, self.n_sets)
        return [(int(group), int(offset)) for group, offset in zip(chosen, offsets, strict=True)]

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row numbers of the target cells and of the controls of a step, for all ranks, and the group of each.

        Returns
        -------
        Three arrays of length n_sets * set_size, set after set.
        """
        sets = self.plan(step)
        targets = [self._take(self.groups.targets[group], group, offset, TARGETS) for group, offset in sets]
        controls = [self._take(self.groups.controls[group], group, offset, CONTROLS) for group, offset in sets]
        return (
            np.concatenate(targets, dtype=np.int64),
            np.concatenate(controls, dtype=np.int64),
            np.repeat([group for group, _ in sets], self.set_size),
        )

    def own(self) -> np.ndarray:
        """Which rows of `draw` are of the sets of this rank; every row is of one rank."""
        return np.arange(self.n_sets * self.set_size).reshape(self.n_sets, self.set_size)[self.rank :: self.world_size].ravel()

    def _take(self, rows: np.ndarray, group: int, offset: int, stream: int) -> np.ndarray:
        """`set_size` of `rows`: a random subset, or, of fewer rows, whole permutations one after another, so that they repeat evenly."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, offset], counter=[0, 0, stream, group]))
        if len(rows) > self.set_size:
            return rows[rng.choice(len(rows), self.set_size, replace=False)]
        passes = -(-self.set_size // len(rows))
        return np.concatenate([rng.permutation(rows) for _ in range(passes)])[: self.set_size]
