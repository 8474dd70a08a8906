"""A fitted model on another gene panel: the same weights, with rows for the genes that are there.

What belongs to a gene (its token, its answer, mean and scale) is taken along for genes that were in training. A gene that was not gets its
token and answer from its features alone, mean and scale from the given control cells. No weight is changed, nothing is fitted again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from counterflow.backbones.featured import FeaturedBackbone
from counterflow.backbones.token import TokenBackbone
from counterflow.conditions.gene_features import carried_over, table_rows
from counterflow.data.ledger import Ledger
from counterflow.data.screen import Screen, read_cells
from counterflow.data.source import enough, whole
from counterflow.errors import ConfigError, DataError, warn
from counterflow.grouping import Grouping
from counterflow.nn.tokens import GeneTokenizer
from counterflow.reference import Reference
from counterflow.spaces.base import log_normalise
from counterflow.spaces.expression import ExpressionSpace

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.model import CounterFlow

_OF_A_GENE = ("tokenizer.embedding", "tokenizer.direction", "head.weight", "head.bias")  # of a network with one token per gene


def on_panel(model: CounterFlow, adata: AnnData, genes: Sequence[str] | None, table: pd.DataFrame | None) -> CounterFlow:
    """See `CounterFlow.on_panel`."""
    per_gene = _per_gene(model)
    genes = tuple(map(str, adata.var_names if genes is None else genes))
    if len(set(genes)) < len(genes) or not genes:
        raise ConfigError("genes: name at least one gene, and each once")
    cells, positions = read_cells(adata, model.setup, genes)
    place = {gene: row for row, gene in enumerate(model.genes)}
    known = np.array([place.get(gene, -1) for gene in genes])
    unseen = [gene for gene, row in zip(genes, known, strict=True) if row < 0]
    if len(unseen) == len(genes):
        raise DataError(f"none of these {len(genes):,} genes was in training (first: {genes[0]!r}; the model's: {model.genes[0]!r})")
    if unseen and not isinstance(model.module.backbone, FeaturedBackbone):
        raise DataError(
            f"{len(unseen):,} genes were not in training ({_listed(unseen)}) and this model knows genes by their numbers only: "
            "fit it with backbone_kwargs={'gene_features': 'coexpression'} (or a table), or leave them out (genes=...)"
        )
    new = copy.copy(model)
    new.genes, new.adata, new._asked = genes, None, None
    new.ledger = copy.deepcopy(model.ledger) if model.ledger is not None else Ledger.unknown("genes")
    new.space = _space(model.space, cells, known)
    new.grouping = Grouping(known_by=_known_by(model, cells, known, unseen, table))
    new.module = new.build_module(new.grouping, model.vocabulary.seen)
    new.module.load_state_dict(new.module.state_dict() | _rows(model.module, per_gene, known))
    new.reference = Reference.keep(cells, adata.obs.iloc[positions], model.setup, model.config["keep_controls"], model.config["seed"])
    new.trained_on = {**model.trained_on, "unseen_genes": unseen}
    for stage in ("reference", *(("space",) if unseen else ())):
        new.ledger.record(stage, cells.keys)
    if unseen:
        warn(f"{len(unseen):,} of {len(genes):,} genes were not in training ({_listed(unseen)}): known by their features alone", above=2)
    return new


def _per_gene(model: CounterFlow) -> tuple[str, ...]:
    """The weights that have a row per gene."""
    if model.config["space"] != "raw":
        raise ConfigError(f"a model in space={model.config['space']!r} needs all of its genes: panels can differ in space='raw'")
    if model.rule is not None:
        raise ConfigError("means of this model come from a rule measured gene by gene: fit with anchor='none' to predict for other genes")
    backbone, origin = model.module.backbone, model.module.origin
    if isinstance(backbone, FeaturedBackbone) and origin is None:
        return FeaturedBackbone.PER_GENE
    if isinstance(backbone, TokenBackbone) and isinstance(backbone.tokenizer, GeneTokenizer) and origin is None:
        layout = backbone.tokenizer.layout
        if layout.order is None and layout.genes_per_token == 1:
            return _OF_A_GENE
    raise ConfigError(
        f"the network of this model ({model.config['backbone']}) reads its genes in their places: for other panels fit 'set', "
        "'dit' with genes_per_token=1, or 'ssm' with order='none' (and no coupling='genot')"
    )


def _known_by(model: CounterFlow, cells: Screen, known: np.ndarray, unseen: list[str], table: pd.DataFrame | None) -> torch.Tensor | None:
    """Features of the genes of the panel."""
    if not isinstance(model.module.backbone, FeaturedBackbone):
        return None
    of_training = model.module.backbone.features.cpu().numpy()
    if model.config["backbone_kwargs"].get("gene_features") == "table":
        features = of_training[np.maximum(known, 0)]
        if unseen and table is None:
            raise DataError(
                f"{len(unseen):,} genes were not in training ({_listed(unseen)}): give the table of gene_features that has them"
            )
        if table is not None:
            features = table_rows(table, cells.genes)
            if not np.allclose(features[known >= 0], of_training[known[known >= 0]], atol=1e-4):
                raise DataError("gene_features is not the table that this model was fitted with: rows of its own genes differ")
    else:
        some = cells.rows(enough(len(cells.cells), len(cells.genes), model.config["seed"]))
        features = carried_over(of_training, known, log_normalise(whole(some.counts), some.library))
    without = [gene for gene, row, values in zip(cells.genes, known, features, strict=True) if row < 0 and not values.any()]
    if without:
        raise DataError(
            f"{len(without):,} genes were not in training and have no features ({_listed(without)}: no row in the table, or constant in "
            "these control cells): leave them out (genes=...)"
        )
    return torch.from_numpy(features)


def _space(space: object, cells: Screen, known: np.ndarray) -> ExpressionSpace:
    """Mean and scale of a gene are those of training; of the given controls, for a new one."""
    assert isinstance(space, ExpressionSpace)
    fresh = ExpressionSpace(len(known))
    some = cells.rows(enough(len(cells.cells), len(cells.genes), 0))
    fresh.fit(whole(some.counts), some.library, seed=0)
    here = torch.from_numpy(np.flatnonzero(known >= 0))
    for values, of_training in ((fresh.mean, space.mean), (fresh.scale, space.scale)):
        values[here] = of_training[torch.from_numpy(known[known >= 0])].to(values)
    return fresh


def _rows(module: nn.Module, per_gene: tuple[str, ...], known: np.ndarray) -> dict[str, torch.Tensor]:
    """The weights, with one row per gene of the panel where there was one per gene; zeros for a new gene."""
    weights = dict(module.state_dict())
    index = torch.from_numpy(np.maximum(known, 0))
    for name in (f"backbone.{one}" for one in per_gene if one != "features"):
        values = weights[name].cpu()[index]
        values[torch.from_numpy(known < 0)] = 0
        weights[name] = values
    weights.pop("backbone.features", None)
    return weights


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
