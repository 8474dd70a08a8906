"""Which genes are modelled, and which cells they were chosen on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from counterflow.data.ledger import CellKeys, Ledger, hashes
from counterflow.data.matrix import log_normalised
from counterflow.data.schema import setup_of
from counterflow.data.screen import Screen, gene_positions, read_screen
from counterflow.data.source import enough, whole
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

CHOICE = "_counterflow_genes"  # in adata.uns: names of genes, and hashes of the names of the cells they were chosen on


def select_genes(cells: Screen, n_top_genes: int | None, ledger: Ledger, seed: int = 0) -> tuple[str, ...]:
    """All genes of the file, or the `n_top_genes` most variable in `cells` (training cells) and every perturbed gene, in file order.

    Variability is measured on all of them, or on 50,000 chosen at random.
    """
    if n_top_genes is None or n_top_genes >= len(cells.genes):
        return cells.genes
    if n_top_genes < 2:
        raise ConfigError(f"n_top_genes={n_top_genes}: model at least 2 genes")
    import scanpy as sc
    from anndata import AnnData

    some = cells.rows(enough(len(cells.cells), len(cells.genes), seed))
    ledger.record("genes", CellKeys.of(some.cells))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(log_normalised(whole(some.counts), some.library))
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, flavor="seurat")
    perturbed = {part for spec in cells.conditions for part in spec.parts}
    keep = adata.var["highly_variable"].to_numpy()
    return tuple(gene for gene, variable in zip(cells.genes, keep, strict=True) if variable or gene in perturbed)


def choose_genes(adata: AnnData, genes: int | Sequence[str], *, chosen_on: Sequence[str] | None = None) -> None:
    """Say which genes the models of a declared AnnData have, and remember the cells they were chosen on, so that a leak audit knows.

    The matrix keeps all its genes, and with them the library sizes; the choice is written to ``adata.uns``.

    Parameters
    ----------
    adata
        Declared with `setup_anndata`.
    genes
        Names of your own choice (a panel, differentially expressed genes ...), or a number: that many of the most variable genes in the
        training cells, and every perturbed gene.
    chosen_on
        ``obs_names`` of the cells that your own choice looked at; empty for a list that no cell of this screen was asked for.

    Raises
    ------
    ConfigError
        If names are given without `chosen_on`.
    DataError
        If a gene is not in the file.
    """
    ledger = Ledger()
    if isinstance(genes, int):
        screen = read_screen(adata, setup_of(adata))
        genes = select_genes(screen.rows(screen.split == "train"), genes, ledger)
    elif chosen_on is None:
        raise ConfigError("chosen_on must be given: the obs_names of the cells that these genes were chosen on ([] for none)")
    else:
        gene_positions(adata.var_names, list(genes))
        ledger.record("genes", CellKeys.of(list(chosen_on)))
    looked_at = ledger.seen["genes"].name if ledger.seen else hashes(())
    adata.uns[CHOICE] = {"genes": np.array(list(genes), dtype=object), "chosen_on": looked_at}


def chosen_genes(adata: AnnData, ledger: Ledger) -> tuple[str, ...] | None:
    """The genes that `choose_genes` named (None: all), and a line in the ledger about where they come from."""
    if CHOICE not in adata.uns:
        ledger.remark("genes", "whether and how the genes of the file were chosen before is not known (choose_genes keeps a record)")
        return None
    ledger.record("genes", CellKeys(np.asarray(adata.uns[CHOICE]["chosen_on"], dtype=np.uint64)))
    return tuple(map(str, adata.uns[CHOICE]["genes"]))
