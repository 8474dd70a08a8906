"""Which genes are modelled, and which cells they were chosen on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from counterflow.data.ledger import CellKeys, Ledger, hashes
from counterflow.data.matrix import TARGET_SUM
from counterflow.data.schema import declare, setup_of
from counterflow.data.screen import Screen, gene_positions, read_counts, read_screen
from counterflow.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

CHOSEN_ON = "_counterflow_genes_chosen_on"  # in adata.uns: hashes of cell names
LIBRARY = "counterflow_library_size"


def select_genes(cells: Screen, n_top_genes: int | None, ledger: Ledger) -> tuple[str, ...]:
    """All genes of the file, or the `n_top_genes` most variable in `cells` (training cells) and every perturbed gene, in file order."""
    if n_top_genes is None or n_top_genes >= len(cells.genes):
        return cells.genes
    if n_top_genes < 2:
        raise ConfigError(f"n_top_genes={n_top_genes}: model at least 2 genes")
    import scanpy as sc
    from anndata import AnnData

    ledger.record("genes", CellKeys.of(cells.cells))
    values = cells.counts.multiply((TARGET_SUM / np.maximum(cells.library, 1.0))[:, None]).tocsr().astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(values.log1p())
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, flavor="seurat")
    perturbed = {part for spec in cells.conditions for part in spec.parts}
    keep = adata.var["highly_variable"].to_numpy()
    return tuple(gene for gene, variable in zip(cells.genes, keep, strict=True) if variable or gene in perturbed)


def restrict_genes(adata: AnnData, genes: int | Sequence[str], *, chosen_on: Sequence[str] | None = None) -> AnnData:
    """A copy of a declared AnnData with fewer genes, which remembers the cells they were chosen on, so that a leak audit knows.

    Parameters
    ----------
    adata
        Declared with `setup_anndata`. Counts without a ``library_size_key`` keep the size of the whole cell in a new column.
    genes
        Names of your own choice (a panel, differentially expressed genes ...), or a number: that many of the most variable genes in the
        training cells, and every perturbed gene.
    chosen_on
        ``obs_names`` of the cells that your own choice looked at; empty for a list that no cell of this screen was asked for.

    Raises
    ------
    ConfigError
        If names are given without `chosen_on`.
    """
    setup, ledger = setup_of(adata), Ledger()
    if isinstance(genes, int):
        screen = read_screen(adata, setup)
        genes = select_genes(screen.rows(screen.split == "train"), genes, ledger)
        looked_at = ledger.seen["genes"].name if ledger.seen else hashes(())
    elif chosen_on is None:
        raise ConfigError("chosen_on must be given: the obs_names of the cells these genes were chosen on ([] for none)")
    else:
        looked_at = hashes(list(chosen_on))
    fewer = adata[:, gene_positions(adata.var_names, list(genes))].copy()
    fewer.uns[CHOSEN_ON] = np.union1d(looked_at, adata.uns.get(CHOSEN_ON, hashes(())))
    if setup.library_size_key is None and setup.matrix_state == "counts":
        fewer.obs[LIBRARY] = read_counts(adata, setup)[1]
        setup = replace(setup, library_size_key=LIBRARY)
    declare(fewer, setup)
    return fewer


def record_choice(adata: AnnData, ledger: Ledger) -> None:
    """Write down on which cells the genes of `adata` were chosen, as far as it says so."""
    if CHOSEN_ON in adata.uns:
        ledger.record("genes", CellKeys(np.asarray(adata.uns[CHOSEN_ON], dtype=np.uint64)))
    else:
        ledger.remark("genes", "whether and how the genes of the file were chosen before is not known (restrict_genes keeps a record)")
