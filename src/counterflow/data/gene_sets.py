"""Sets of genes that somebody named: pathways in a GMT file, or a dict. They may overlap, and need not hold every gene."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from counterflow.errors import ConfigError, DataError, near


def read_gmt(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """The sets of a GMT file: one line per set, with its name, a description (not read), and its genes, separated by tabs.

    Raises
    ------
    DataError
        If there is no such file, or it is not a GMT file.
    """
    shown = repr(os.fspath(path))
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{shown} is not text (UTF-8): a GMT file has a line per gene set, separated by tabs; unpack it first") from None
    except OSError as error:
        raise DataError(f"cannot read the gene sets in {shown}: {error.strerror}") from None
    sets: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes:
            raise DataError(f"{shown}, line {number}: a line of a GMT file is name, description and genes, separated by tabs")
        if name in sets:
            raise DataError(f"{shown}, line {number}: the set {name!r} is there twice")
        sets[name] = genes
    if not sets:
        raise DataError(f"{shown} holds no gene sets")
    return sets


def named_sets(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Gene sets handed in as a dict, checked; a gene named twice in a set counts once."""
    for name, genes in given.items():
        if isinstance(genes, str) or not isinstance(genes, Sequence) or not all(isinstance(gene, str) for gene in genes):
            raise ConfigError(f"modules: the set {name!r} must be a list of gene names, not {genes!r:.80}")
    return {str(name): tuple(dict.fromkeys(genes)) for name, genes in given.items()}


def positions_in(sets: Mapping[str, Sequence[str]], genes: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """Every set as positions in `genes` (those that hold one at least), and in words what was not found ("" if all was).

    Raises
    ------
    ConfigError
        If no set holds any of the genes, or there are more sets than genes.
    """
    place = {gene: i for i, gene in enumerate(genes)}
    found = [np.array(sorted(place[gene] for gene in members if gene in place), dtype=np.int64) for members in sets.values()]
    kept = [members for members in found if len(members)]
    named = dict.fromkeys(gene for members in sets.values() for gene in members)
    unknown = [gene for gene in named if gene not in place]
    if not kept:
        ids = " (one side has Ensembl ids, the other gene symbols)" if _ensembl(named) != _ensembl(genes) else ""
        first = next(iter(named), "")
        raise ConfigError(
            f"modules: none of the {len(named):,} genes in {len(sets):,} sets is among the {len(genes):,} modelled genes{ids}; "
            f"for {first!r} {near(first, genes, most=3)}"
        )
    if len(kept) > len(genes):
        raise ConfigError(f"modules: {len(kept):,} gene sets for {len(genes):,} genes: choose a smaller collection (Hallmark has 50)")
    if not unknown:
        return kept, ""
    some = ", ".join(unknown[:5]) + (", ..." if unknown[5:] else "")
    text = f"modules: {len(unknown):,} of {len(named):,} genes are not among the modelled ones ({some})"
    empty = len(found) - len(kept)
    return kept, text + (f"; {empty:,} of {len(sets):,} sets are left out for it" if empty else "")


def _ensembl(names: Sequence[str] | Mapping[str, Any]) -> bool:
    return any(name.startswith("ENS") for name in names)
