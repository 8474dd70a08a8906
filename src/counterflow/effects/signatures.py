"""Where somebody wants cells to go: genes with weights, and how far an effect goes there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterflow.errors import ConfigError, DataError, near, warn

_NAMED = 3  # unknown genes that a message names


@dataclass(frozen=True)
class Signature:
    """A direction on the genes of a model (G)."""

    weight: NDArray[np.float64]  # G, absolute values sum to 1
    left_out: tuple[str, ...] = ()  # genes that the model does not have

    def toward(self, effects: NDArray) -> NDArray[np.float64]:
        """Mean change of log expression in the wanted direction, genes by their weight (effects: ... x G)."""
        return effects @ self.weight

    def alignment(self, effects: NDArray) -> NDArray[np.float64]:
        """How much of the whole effect points there: cosine over all genes; 0 where nothing changes."""
        length = np.linalg.norm(effects, axis=-1) * np.linalg.norm(self.weight)
        return np.divide(self.toward(effects), length, out=np.zeros_like(length), where=length > 0)


def signature_of(weights: Mapping[str, float], genes: Sequence[str]) -> Signature:
    """From weights by gene: positive where a gene shall rise. Genes that the model lacks are left out, and named in a warning.

    Raises
    ------
    DataError
        If no weight is left, or one is not a number.
    """
    given = {str(gene): float(weight) for gene, weight in weights.items()}
    if not given:
        raise DataError("the signature is empty: name at least one gene that shall rise or fall")
    if bad := [gene for gene, weight in given.items() if not np.isfinite(weight)]:
        raise DataError(f"the signature has no finite weight for {len(bad)} genes (first: {bad[0]!r})")
    place = {gene: i for i, gene in enumerate(genes)}
    unknown = tuple(gene for gene in given if gene not in place)
    said = "; ".join(f"{gene!r}: {near(gene, genes, most=3)}" for gene in unknown[:_NAMED])
    counted = f"{len(unknown)} of the {len(given)} genes of the signature are not among the model's {len(genes):,}"
    weight = np.zeros(len(genes))
    for gene, value in given.items():
        if gene in place:
            weight[place[gene]] = value
    total = np.abs(weight).sum()
    if total == 0 and unknown:
        raise DataError(f"{counted} ({said}): give names as the model has them")
    if total == 0:
        raise DataError("every gene of the signature has weight 0: nothing shall change")
    if unknown:
        warn(f"{counted} and are left out ({said})", above=3)
    return Signature(weight / total, unknown)


def gene_weights(up: Iterable[str], down: Iterable[str]) -> dict[str, float]:
    """Weight 1 for genes that shall rise, -1 for those that shall fall."""
    rise, fall = list(dict.fromkeys(up)), list(dict.fromkeys(down))
    if both := [gene for gene in rise if gene in set(fall)]:
        raise ConfigError(f"{len(both)} genes shall both rise and fall (first: {both[0]!r}): keep each in one list")
    return dict.fromkeys(rise, 1.0) | dict.fromkeys(fall, -1.0)


def pasted_genes(text: str) -> list[str]:
    """Names from a text with one a line, or between commas, semicolons, tabs or spaces."""
    return [name for name in re.split(r"[\s,;]+", text.replace('"', " ").replace("'", " ")) if name]
