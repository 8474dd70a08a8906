"""What combinations do beyond the sum of their parts: one factor for all, and what similar combinations did.

The effect of a combination is modelled as ``factor * sum of parts + interaction``. Most combinations are sub-additive, and parts are
measured with noise: the factor is least squares over measured combinations. The interaction is a Gaussian process over combinations,
feature by feature, with a covariance that is large where the parts of one resemble, in their effects, the parts of the other (a product
kernel for pairs: Ben-Hur & Noble, Bioinformatics 2005); its strength is what noise does not explain, so it is zero where nothing was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 3  # combinations whose parts were measured alone
SUM_SHARE = 0.3  # covariance by similar sums, beside that by similar pairs of parts

Members = Sequence[tuple[int, ...]]  # the parts of each combination, as rows of the table of parts


@dataclass(frozen=True)
class Interactions:
    """Fitted on N measured combinations of A parts (a part at another dose or time is another one); F features."""

    factor: float
    parts: NDArray[np.float64]  # A x F
    length: float  # root mean square length of the parts
    members: Members  # N
    weight: NDArray[np.float64]  # N x F

    @classmethod
    def none(cls) -> Interactions:
        """The plain sum."""
        return cls(1.0, np.zeros((0, 0)), 1.0, (), np.zeros((0, 0)))

    @classmethod
    def fit(cls, parts: NDArray, members: Members, effects: NDArray, noise: NDArray) -> Interactions:
        """Learn from combinations.

        Parameters
        ----------
        parts
            Effects of the parts alone (A x F), at the doses and times they have in the combinations.
        members
            Parts of each measured combination, as rows of `parts`.
        effects
            Of the combinations (N x F).
        noise
            Expected squared error (N) of ``effect - sum of parts``, mean over features.
        """
        sums = np.array([parts[list(rows)].sum(0) for rows in members])
        length = float(np.sqrt((parts**2).sum(1).mean()))
        if len(members) < FEWEST or length == 0:
            return cls.none()
        factor = _factor(sums, effects)
        left = effects - factor * sums
        alike = parts @ parts.T / length**2
        covariance = _covariance(alike, members, members)
        explained = max(float((left**2).mean() - noise.mean()), 0.0) / float(np.diag(covariance).mean())
        solved = np.linalg.solve(explained * covariance + (noise.mean() + 1e-12) * np.eye(len(members)), left)
        return cls(factor, parts, length, members, explained * solved)

    def __call__(self, total: NDArray, parts: NDArray) -> NDArray:
        """Effect (F) of a combination: `parts` (k x F) are those of its parts, as in `fit`; `total` is their sum where it is asked for."""
        if not len(self.members):
            return total
        alike = parts @ self.parts.T / self.length**2
        return self.factor * total + _covariance(alike, [tuple(range(len(parts)))], self.members)[0] @ self.weight


def _factor(sums: NDArray, effects: NDArray) -> float:
    """Least squares, drawn to 1 by its uncertainty between combinations (positive-part James-Stein)."""
    along, square = (sums * effects).sum(1), (sums**2).sum(1)
    if square.sum() == 0:
        return 1.0
    factor = along.sum() / square.sum()
    n = len(along)
    error = np.sqrt(((along - factor * square) ** 2).sum() * n / (n - 1)) / square.sum()
    return float(1.0 + (factor - 1.0) * max(0.0, 1.0 - (error / (factor - 1.0)) ** 2)) if factor != 1.0 else 1.0


def _covariance(alike: NDArray, some: Members, others: Members) -> NDArray:
    """Between combinations, by similar pairs of parts and by similar sums; `alike` are inner products of the parts of both."""
    first, owner = _pairs(some)
    second, others_owner = _pairs(others)
    a, b, c, d = first[:, :1], first[:, 1:], second[None, :, 0], second[None, :, 1]
    product = 0.5 * (alike[a, c] * alike[b, d] + alike[a, d] * alike[b, c])
    paired = np.zeros((len(some), len(others)))
    np.add.at(paired, (owner[:, None], others_owner[None, :]), product)
    here, there = (_incidence(members, size) for members, size in zip((some, others), alike.shape, strict=True))
    return paired + SUM_SHARE * 0.5 * here @ alike @ there.T


def _incidence(members: Members, n_parts: int) -> NDArray:
    """How often each part is in each combination."""
    table = np.zeros((len(members), n_parts))
    for row, parts in enumerate(members):
        np.add.at(table[row], list(parts), 1.0)
    return table


def _pairs(members: Members) -> tuple[NDArray, NDArray]:
    """All pairs of parts inside each combination, and which combination each belongs to."""
    pairs = [(x, y) for rows in members for i, x in enumerate(rows) for y in rows[i + 1 :]]
    owner = [n for n, rows in enumerate(members) for i in range(len(rows)) for _ in rows[i + 1 :]]
    return np.array(pairs, dtype=np.int64), np.array(owner, dtype=np.int64)
