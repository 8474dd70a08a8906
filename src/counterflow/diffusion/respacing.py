"""Fewer steps than were trained: a schedule over some of the times, in which the network is still told the original ones."""

from __future__ import annotations

import torch

from counterflow.diffusion.schedule import Schedule
from counterflow.errors import ConfigError


def respace(schedule: Schedule, steps: int | str) -> Schedule:
    """The schedule that visits only the `kept_times`, with the same signal left at each of them (arXiv 2102.09672).

    Parameters
    ----------
    steps
        Number of steps, evenly spread from the first time to the last; or `"ddim50"` for every 20th of 1,000 from the first on.

    Examples
    --------
    >>> respace(linear_schedule(), 250).times[:3]
    tensor([0, 4, 8])
    """
    kept = torch.as_tensor(kept_times(steps, len(schedule)))
    A = schedule.A[kept]
    return Schedule(1 - A / torch.cat([A.new_ones(1), A[:-1]]), schedule.times[kept])


def kept_times(steps: int | str, n_times: int) -> list[int]:
    """The times that are visited, ascending.

    Raises
    ------
    ConfigError
        If `steps` is neither a number from 2 to `n_times` nor `"ddimN"` with an N that a whole stride gives.
    """
    if isinstance(steps, str):
        return _strided(steps, n_times)
    if not 2 <= steps <= n_times:
        raise ConfigError(f"{steps} sampling steps: give a number from 2 to {n_times}, the number of times of the schedule")
    stride = (n_times - 1) / (steps - 1)
    kept, position = [], 0.0
    for _ in range(steps):  # added up, not multiplied: the reference's grids differ in places from those of the products
        kept.append(round(position))
        position += stride
    return kept


def _strided(steps: str, n_times: int) -> list[int]:
    number = steps.removeprefix("ddim")
    if number == steps or not number.isdigit():
        raise ConfigError(f"sampling steps {steps!r}: give a number, or 'ddimN' such as 'ddim50'")
    for stride in range(1, n_times + 1):
        if len(range(0, n_times, stride)) == int(number):
            return list(range(0, n_times, stride))
    raise ConfigError(f"{steps!r}: no whole stride through {n_times} times gives {number} steps; give a divisor of {n_times}")
