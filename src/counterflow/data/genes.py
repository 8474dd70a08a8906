"""Which genes are modelled."""

from __future__ import annotations

import warnings

from counterflow.data.matrix import log_normalised
from counterflow.data.screen import Screen
from counterflow.errors import ConfigError


def select_genes(cells: Screen, n_top_genes: int | None) -> tuple[str, ...]:
    """All genes of the file, or the `n_top_genes` most variable in `cells` (training cells) and every perturbed gene, in file order."""
    if n_top_genes is None or n_top_genes >= len(cells.genes):
        return cells.genes
    if n_top_genes < 2:
        raise ConfigError(f"n_top_genes={n_top_genes}: model at least 2 genes")
    import scanpy as sc
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(log_normalised(cells.counts, cells.library))
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, flavor="seurat")
    perturbed = {part for spec in cells.conditions for part in spec.parts}
    keep = adata.var["highly_variable"].to_numpy()
    return tuple(gene for gene, variable in zip(cells.genes, keep, strict=True) if variable or gene in perturbed)
