"""Which features share a token: an order, clusters, gene sets."""

import numpy as np
import pytest
import torch

from counterflow.errors import ConfigError, CounterflowWarning
from counterflow.grouping import Grouping, branches, clusters, feature_order, feature_tree, gene_sets, plain_grouping

GENES = tuple("ABCDEFG")


def config(modules=None, space="raw", backbone="dit", **others):
    return {"backbone": backbone, "space": space, "backbone_kwargs": {"modules": modules} | others}


def groups(table):
    return [sorted(row[row >= 0].tolist()) for row in table]


def test_correlated_features_are_neighbours_and_one_feature_has_an_order():
    x, y = torch.randn(2, 100, 1, generator=torch.Generator().manual_seed(0))
    order = feature_order(torch.cat([x, y, x, y], dim=1)).tolist()
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert feature_order(x).tolist() == [0]


def test_clusters_are_whole_branches_and_hold_every_feature_once():
    x, y, z = torch.randn(3, 200, 1, generator=torch.Generator().manual_seed(0))
    states = torch.cat([x, y, x, y, x, z], dim=1) + 0.1 * torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    tree, order = feature_tree(states), feature_order(states).numpy()
    sizes = branches(tree, 6, 3)
    assert sorted(sizes) == [1, 2, 3] or sorted(sizes) == [3, 3]  # y and z may be a branch of their own
    found = {frozenset(group.tolist()) for group in clusters(order, sizes, 3)}
    assert frozenset({0, 2, 4}) in found
    assert sorted(feature for group in found for feature in group) == list(range(6))
    assert [len(group) for group in clusters(order, branches(tree, 6, 1), 4)] == [4, 2]  # single ones are put together
    assert branches(None, 1, 4) == [1]


def test_gene_sets_overlap_and_what_they_leave_is_kept():
    sets = gene_sets(config({"one": ["A", "B", "C"], "two": ["G", "C", "C"]}), GENES)
    table = plain_grouping(config({}, genes_per_token=2), sets, 7).modules
    assert groups(table) == [[0, 1, 2], [3, 4], [2, 6], [5]]  # in the order of their mean place
    assert (table[1:3, 2] == -1).all()


def test_unknown_genes_are_reported():
    given = config({"one": ["A", "Z"], "two": ["Y"], "three": ["B", "C"]})
    with pytest.warns(CounterflowWarning, match=r"2 of 5 genes are not among .* \(Z, Y\); 1 of 3 sets"):
        assert [list(one) for one in gene_sets(given, GENES, report=True)] == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("modules", "space", "message"),
    [
        ({"one": ["X", "Z"]}, "raw", "none of the 2 genes in 1 sets is among the 7 modelled genes"),
        ({"one": ["ENSG1"]}, "raw", "Ensembl ids"),
        ({"one": "ABC"}, "raw", "'one' must be a list"),
        ({"one": ["A"]}, "pca", "space='pca' has none"),
        ({str(i): ["A"] for i in range(8)}, "raw", "8 gene sets for 7 genes"),
        ("cluster", "pca", "did you mean 'clusters'"),
        (3, "raw", "modules=3 is unknown"),
    ],
)
def test_what_cannot_be_is_said(modules, space, message):
    with pytest.raises(ConfigError, match=message):
        gene_sets(config(modules, space), GENES)


def test_a_size_that_cannot_be_is_said():
    with pytest.raises(ConfigError, match="between 1 and the number of features 7, not 9"):
        plain_grouping(config("clusters", genes_per_token=9), None, 7)


def test_networks_of_others_keep_their_options():
    mine = config("anything", backbone="mylab.net:Net")
    assert gene_sets(mine, GENES) is None
    assert plain_grouping(mine, None, 7).arguments(mine) == {"modules": "anything"}
    members = {"module.backbone.tokenizer.layout.members": torch.zeros(2, 2)}
    assert Grouping.stored(mine, members, 7).modules is None


def test_the_table_replaces_the_name_of_a_way_to_find_it():
    chosen = config("clusters", genes_per_token=3, width=8)
    arguments = plain_grouping(chosen, None, 7).arguments(chosen)
    assert groups(arguments.pop("modules")) == [[0, 1, 2], [3, 4, 5], [6]]
    assert arguments == {"width": 8}
    assert np.array_equal(plain_grouping(config(), None, 7).arguments(config()), {"modules": None})
