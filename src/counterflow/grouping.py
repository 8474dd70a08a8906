"""Which features of a state are read together: in an order in which correlated ones are neighbours, or in modules. And what they are like.

Modules are gene sets, or clusters of control cells. Either way every feature is in at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterflow.backbones import BACKBONES, reads_order
from counterflow.conditions.gene_features import gene_loadings, table_rows, unknown_kind
from counterflow.data.gene_sets import named_sets, positions_in, read_gmt
from counterflow.data.ledger import Ledger
from counterflow.data.screen import Screen
from counterflow.data.source import enough, whole
from counterflow.errors import ConfigError, near, warn
from counterflow.spaces.base import log_normalise

MODULES = ("clusters", "rank")  # besides gene sets
MOST_MODULES = 256  # of clusters, and of genes in no set
FEWEST_GENES = 4  # in one of those
_CELLS = 2000  # that an order is learnt from
_STORED, _KNOWN_BY = "module.backbone.tokenizer.layout.members", "module.backbone.features"  # among the weights of a model


class Grouping(NamedTuple):
    """How features are laid out for a backbone that asks; None: as they come."""

    order: Tensor | None = None  # a permutation of the features
    modules: Tensor | None = None  # one row of features per token, padded with -1
    known_by: Tensor | None = None  # one row of numbers per gene, see `counterflow.backbones.featured`

    @classmethod
    def stored(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor], n_features: int) -> Grouping:
        """For weights that are about to be loaded: they bring the order, and hold the modules."""
        modules = weights.get(_STORED) if _chosen(config) is not None else None
        return cls(torch.arange(n_features), modules, weights.get(_KNOWN_BY) if _chosen(config, "gene_features") is not None else None)

    def arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """``backbone_kwargs``, with modules in place of the name of a way to find them."""
        given = dict(config["backbone_kwargs"])
        if self.known_by is not None:
            given["gene_features"] = self.known_by
        if self.modules is None:
            return given
        given.pop("genes_per_token", None)
        return given | {"modules": self.modules}


def gene_sets(config: Mapping[str, Any], genes: Sequence[str], *, report: bool = False) -> list[np.ndarray] | None:
    """The gene sets that ``backbone_kwargs={"modules": ...}`` names, as positions in `genes`; None where it names none."""
    chosen = _chosen(config)
    if chosen is None or chosen in MODULES:
        return None
    if not isinstance(chosen, Mapping) and not str(chosen).lower().endswith(".gmt"):
        raise ConfigError(f"modules={chosen!r} is unknown: {near(chosen, MODULES)} Or give a .gmt file, or a dict of gene sets")
    if config["space"] != "raw":
        raise ConfigError(f"gene sets group genes, and space={config['space']!r} has none: use space='raw', or modules='clusters'")
    found, remark = positions_in(named_sets(chosen) if isinstance(chosen, Mapping) else read_gmt(chosen), genes)
    if remark and report:
        warn(remark, above=4)
    return found


def plain_grouping(config: Mapping[str, Any], sets: list[np.ndarray] | None, n_features: int) -> Grouping:
    """Before any cell was seen: of the same shape wherever the shape does not depend on the cells."""
    return Grouping(None, _modules(config, sets, np.arange(n_features), [1] * n_features))


def learnt_grouping(
    config: Mapping[str, Any], sets: list[np.ndarray] | None, cells: Screen, states: Callable[[np.ndarray], Tensor], ledger: Ledger
) -> Grouping:
    """Learnt from control training cells, where the backbone asks for an order or for modules."""
    if _chosen(config) == "rank" or (_chosen(config) is None and not reads_order(config["backbone"])):
        return Grouping()
    some = np.flatnonzero(cells.is_control)[:_CELLS]
    ledger.record("order", cells.rows(some).keys)
    if sets is not None:
        ledger.remark("order", "gene sets handed in: from which cells they were made, if from any, is not known")
    values = states(some)
    tree = feature_tree(values)
    order = _leaves(tree, values.shape[1])
    return Grouping(torch.from_numpy(order), _modules(config, sets, order, branches(tree, values.shape[1], _size(config, len(order)))))


def feature_order(states: Tensor) -> Tensor:
    """An order of the state features in which correlated ones are neighbours: leaves of a clustering of control cells."""
    return torch.from_numpy(_leaves(feature_tree(states), states.shape[1]))


def feature_tree(states: Tensor) -> np.ndarray | None:
    """Features clustered by how they are correlated, as scipy's linkage; None of a single feature."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if states.shape[1] < 2:
        return None
    values = states.double().numpy()
    spread = values.std(0)
    scaled = (values - values.mean(0)) / np.where(spread > 1e-8, spread, 1)
    distance = 1 - np.abs(scaled.T @ scaled) / len(scaled)
    np.fill_diagonal(distance, 0)
    return linkage(squareform(np.clip(distance, 0, None), checks=False), method="average", optimal_ordering=len(distance) <= 500)


def _leaves(tree: np.ndarray | None, n_features: int) -> np.ndarray:
    from scipy.cluster.hierarchy import leaves_list

    return np.arange(n_features) if tree is None else leaves_list(tree).astype(np.int64)


def branches(tree: np.ndarray | None, n_features: int, most: int) -> list[int]:
    """Sizes of the largest branches that hold at most `most` features, in the order of the leaves."""
    sizes, stack = [], [n_features if tree is None else 2 * n_features - 2]
    while stack:
        node = stack.pop()
        size = 1 if tree is None or node < n_features else int(tree[node - n_features, 3])
        if size <= most:
            sizes.append(size)
        else:
            assert tree is not None
            stack += [int(tree[node - n_features, 1]), int(tree[node - n_features, 0])]
    return sizes


def _modules(config: Mapping[str, Any], sets: list[np.ndarray] | None, order: np.ndarray, sizes: Sequence[int]) -> Tensor | None:
    """Gene sets and what they leave, or clusters, as a table; None where neither is asked for."""
    size = _size(config, len(order))
    if sets is not None:
        rest = order[~np.isin(order, np.concatenate(sets))]
        groups = [*sets, *(rest[i : i + size] for i in range(0, len(rest), size))]
        place = np.argsort(order)
        groups = sorted(groups, key=lambda group: float(place[group].mean()))  # neighbours for those who read a sequence
    elif _chosen(config) == "clusters":
        groups = clusters(order, sizes, size)
    else:
        return None
    table = np.full((len(groups), max(map(len, groups))), -1)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    return torch.from_numpy(table)


def clusters(order: np.ndarray, sizes: Sequence[int], most: int) -> list[np.ndarray]:
    """Branches of the tree; neighbouring ones together as long as they hold at most `most` features, so that no branch is cut."""
    groups: list[list[int]] = [[]]
    start = 0
    for size in sizes:
        if groups[-1] and len(groups[-1]) + size > most:
            groups.append([])
        groups[-1] += order[start : start + size].tolist()
        start += size
    return [np.array(group) for group in groups]


def gene_features(config: dict[str, Any], cells: Screen, ledger: Ledger) -> Tensor | None:
    """What ``backbone_kwargs={"gene_features": ...}`` says of every gene (G x P); a table is called ``table`` in `config` from then on."""
    chosen = _chosen(config, "gene_features")
    if chosen is None:
        return None
    if config["space"] != "raw":
        raise ConfigError(f"gene_features are about genes, and space={config['space']!r} has none: use space='raw'")
    if isinstance(chosen, pd.DataFrame):
        config["backbone_kwargs"]["gene_features"] = "table"
        ledger.remark("gene features", "handed in: from which cells they were computed, if from any, is not known")
        return torch.from_numpy(table_rows(chosen, cells.genes))
    if chosen != "coexpression":
        raise unknown_kind(chosen)
    controls = cells.rows(cells.is_control)
    controls = controls.rows(enough(len(controls.cells), len(cells.genes), config["seed"]))
    ledger.record("gene features", controls.keys)
    return torch.from_numpy(gene_loadings(log_normalise(whole(controls.counts), controls.library), seed=config["seed"]))


def _chosen(config: Mapping[str, Any], option: str = "modules") -> Any:
    """What the user gave; networks of others may have an option of that name and another meaning."""
    backbone = config["backbone"]
    named = isinstance(backbone, str) and backbone in BACKBONES
    return config["backbone_kwargs"].get(option) if named else None


def _size(config: Mapping[str, Any], n_features: int) -> int:
    """Features in a cluster at most, and genes without a set that share a token."""
    given = config["backbone_kwargs"].get("genes_per_token")
    if given is not None and not (type(given) is int and 1 <= given <= n_features):
        raise ConfigError(f"genes_per_token must be between 1 and the number of features {n_features}, not {given!r}")
    return given or min(n_features, max(FEWEST_GENES, -(-n_features // MOST_MODULES)))
