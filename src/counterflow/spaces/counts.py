"""From expected counts back to counts, and noise that belongs to a cell.

**Count transport** moves given control cells: it thins the counts of genes that go down and adds counts to genes that go up,
so that integers, zeros and everything the model does not explain stay as they were measured (the library size nearly so). New cells, which
have no counts to keep, are drawn from a negative binomial (`draw_nb`).

**Noise belongs to the cell.** Everything random here is a function of (seed, cell, gene), never of the batch: a cell gets
the same counts alone, in any batch and in any order. Counts are quantiles of the uniform number of their cell and gene, so
they also change little when the expected counts change little, and two conditions of one cell differ by their effect, not by
their noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse

from counterflow.errors import DivergenceError
from counterflow.spaces.quantiles import binomial_quantile, nb_quantile

GAUSSIAN_STREAM, COUNT_STREAM, SIGN_STREAM = 0, 1, 2  # the state's noise and the counts' noise of one cell have nothing in common
ROWS_AT_ONCE = 512  # bounds the memory; no number depends on it


def cell_seeds(names: Iterable[str]) -> NDArray[np.uint64]:
    """A stable 64-bit number for each cell, from its name and how many equal names came before it.

    Compute it on the whole table and take rows of the result: the count of equal names starts anew with each call.
    """
    seen: Counter[str] = Counter()

    def seed(name: str) -> int:
        digest = blake2b(f"{name}\0{seen[name]}".encode(), digest_size=8).digest()
        seen[name] += 1
        return int.from_bytes(digest, "little")

    return np.fromiter((seed(str(name)) for name in names), dtype=np.uint64)


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Equal names told apart by how many came before, so that rows taken out of a table keep the noise they have in it."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in map(str, names):
        distinct.append(f"{name}\0{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return tuple(distinct)


def cell_generators(seed: int, cells: NDArray[np.uint64], stream: int) -> Iterator[np.random.Generator]:
    """One random generator per cell, keyed by (seed, cell); different streams of one cell are independent."""
    for cell in cells:
        yield np.random.Generator(np.random.Philox(key=[seed, int(cell)], counter=[0, 0, 0, stream]))


def cell_noise(seed: int, cells: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
    """Standard normal noise [n, dim] that each cell has for itself."""
    return next(cell_noises(seed, cells, dim))


def cell_noises(seed: int, cells: NDArray[np.uint64], dim: int) -> Iterator[NDArray[np.float32]]:
    """One such noise after the other, without end."""
    generators = list(cell_generators(seed, cells, GAUSSIAN_STREAM))
    while True:
        noise = np.empty((len(cells), dim), dtype=np.float32)
        for row, generator in zip(noise, generators, strict=True):
            generator.standard_normal(out=row, dtype=np.float32)
        yield noise


def cell_signs(seed: int, cells: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
    """Random signs [n, dim], -1 or 1, that each cell has for itself."""
    signs = np.empty((len(cells), dim), dtype=np.float32)
    for row, generator in zip(signs, cell_generators(seed, cells, SIGN_STREAM), strict=True):
        row[:] = 2 * generator.integers(0, 2, dim) - 1
    return signs


def transport(
    counts: NDArray | csr_matrix, mean_before: NDArray, mean_after: NDArray, dispersion: NDArray, seed: int, cells: NDArray[np.uint64]
) -> NDArray[np.int32]:
    """The counts of given cells after their expected counts change from `mean_before` to `mean_after`.

    Genes that go down keep each of their counts with probability mean_after / mean_before (binomial thinning); genes that go
    up gain NB(mean_after - mean_before, theta) counts. Exact for Poisson counts: x ~ Poisson(before) becomes Poisson(after).

    Parameters
    ----------
    counts
        Integers [n, G] of the cells before, dense or sparse.
    mean_before, mean_after
        Expected counts [n, G] of the same cells, at their own library size.
    dispersion
        Inverse dispersion theta [G] of the added counts, variance = mu + mu² / theta; infinite for Poisson.
    seed, cells
        The noise of each cell: see `cell_seeds`.

    Raises
    ------
    DivergenceError
        If an expected count is not finite.
    """
    before = _dense(counts).astype(np.int32)
    after = before.copy()
    for rows, uniform in _uniform_blocks(seed, cells, before.shape[1]):
        kept, gained = _kept_and_gained(mean_before[rows], mean_after[rows])
        after[rows] = binomial_quantile(uniform, before[rows], kept) + nb_quantile(uniform, gained, dispersion)
    return after


def transport_mean(counts: NDArray | csr_matrix, mean_before: NDArray, mean_after: NDArray) -> NDArray[np.float64]:
    """What `transport` gives on average over its noise, for these counts: x r where r < 1, x + mean_after - mean_before elsewhere."""
    kept, gained = _kept_and_gained(mean_before, mean_after)
    return _dense(counts) * kept + gained


def draw_nb(mean: NDArray, dispersion: NDArray, seed: int, cells: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Negative binomial counts [n, G] of new cells with these expected counts and inverse dispersions theta [G]."""
    drawn = np.empty(mean.shape, dtype=np.int32)
    for rows, uniform in _uniform_blocks(seed, cells, mean.shape[1]):
        drawn[rows] = nb_quantile(uniform, _expected(mean[rows]), dispersion)
    return drawn


def round_counts(expected: NDArray) -> NDArray[np.int32]:
    """The nearest counts, for models of observed cells: what they predict holds counting noise already."""
    return np.rint(np.maximum(expected, 0)).astype(np.int32)


def fit_dispersion(counts: NDArray | csr_matrix, mean: NDArray, *, smallest: float = 0.05, largest: float = 1e4) -> NDArray[np.float64]:
    """Inverse dispersion theta of each gene by the method of moments, given the expected counts of each cell.

    E (x - mu)² - mu = mu² / theta, summed over cells. Genes without more variance than Poisson get `largest`, and so do
    genes that are never expected.
    """
    excess, squares = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for start in range(0, counts.shape[0], ROWS_AT_ONCE):
        block = counts[start : start + ROWS_AT_ONCE]
        x = _dense(block).astype(np.float64)
        mu = np.asarray(mean[start : start + ROWS_AT_ONCE], dtype=np.float64)
        excess += ((x - mu) ** 2 - mu).sum(0)
        squares += (mu**2).sum(0)
    theta = np.divide(squares, excess, out=np.full_like(squares, largest), where=excess > 0)
    return np.clip(theta, smallest, largest)


def _dense(counts: NDArray | csr_matrix) -> NDArray:
    return counts.toarray() if issparse(counts) else np.asarray(counts)  # type: ignore[union-attr]


def _kept_and_gained(before: NDArray, after: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of its counts that each gene keeps, and the expected number it gains; one of them is always trivial."""
    before, after = _expected(before), _expected(after)
    kept = np.divide(after, before, out=np.ones_like(after), where=after < before)
    return kept, np.maximum(after - before, 0)


def _expected(mean: NDArray) -> NDArray[np.float64]:
    """Expected counts in double precision; a linear decoder's slightly negative ones are 0."""
    if not np.isfinite(mean).all():
        raise DivergenceError(f"{(~np.isfinite(mean)).sum()} expected counts are not finite; the model or its decoder diverged")
    return np.maximum(np.asarray(mean, dtype=np.float64), 0)


def _uniform_blocks(seed: int, cells: NDArray[np.uint64], n_genes: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Blocks of rows and their uniform numbers in [0, 1), one for each cell and gene."""
    for start in range(0, len(cells), ROWS_AT_ONCE):
        some = cells[start : start + ROWS_AT_ONCE]
        uniform = np.empty((len(some), n_genes))
        for row, generator in zip(uniform, cell_generators(seed, some, COUNT_STREAM), strict=True):
            generator.random(out=row)
        yield slice(start, start + len(some)), uniform
