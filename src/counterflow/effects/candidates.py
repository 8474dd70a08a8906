"""Conditions that nobody has measured, the most promising first: singles and pairs of perturbations that were."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from counterflow.types import ConditionSpec

Make = Callable[[tuple[str, ...]], ConditionSpec]


def unmeasured_singles(names: Sequence[str], make: Make, measured: Collection[ConditionSpec]) -> list[ConditionSpec]:
    """Those of `names` that were not measured alone."""
    return [spec for name in names if (spec := make((name,))) not in measured]


def unmeasured_pairs(score: Mapping[str, float], make: Make, measured: Collection[ConditionSpec], most: int) -> list[ConditionSpec]:
    """The `most` unmeasured pairs with the largest sum of their parts' scores, best first."""
    taken = sum(len(spec.parts) == 2 for spec in measured)
    order = sorted(score, key=lambda name: (-score[name], name))
    values = np.array([score[name] for name in order])
    specs = (make(tuple(sorted((order[i], order[j])))) for i, j in _best_pairs(values, most + taken))
    return [spec for spec in specs if spec not in measured][:most]


def _best_pairs(values: NDArray, most: int) -> list[tuple[int, int]]:
    """Positions of the pairs with the largest sums, best first.

    `values` fall, so that (i + 1) * (j - i) - 1 others are as good as pair (i, j): most pairs need not be looked at.
    """
    n = len(values)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, min(n, i + 1 + most // (i + 1)))]
    return sorted(pairs, key=lambda pair: (-(values[pair[0]] + values[pair[1]]), pair))[:most]
