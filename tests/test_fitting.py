"""From a screen to training batches: only what was measured in training goes in."""

import json
from itertools import combinations

import numpy as np
import torch

from counterflow.data.ledger import Ledger
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, read_screen
from counterflow.fitting import fit_gene_rule, fit_rule, nothing_yet
from counterflow.recentring import Recentring
from counterflow.types import ConditionSpec


def test_what_is_held_out_gives_no_anchor(tiny_screen):
    adata = tiny_screen.adata.copy()
    label = adata.obs["perturbation"].astype(str)
    adata.obs["dose"] = np.where(label == "control", 0.0, 1.0)
    held_out = sorted(tiny_screen.perturbations)[0]
    adata.obs["split"] = np.where(label.map(lambda name: held_out in name.split("+")), "test", "train")
    setup = Setup("perturbation", "control", dose_key="dose", split_key="split")
    screen: Screen = read_screen(adata, setup)
    anchors = nothing_yet(screen.rows(screen.split == "train"), setup)
    assert anchors == tuple(ConditionSpec((name,), (0.0,)) for name in sorted(tiny_screen.perturbations) if name != held_out)


def test_the_rule_is_as_exact_as_its_file(tiny_screen):
    """Measured effects are kept in single precision, and everything else is computed from them: a loaded rule gives equal bits."""
    adata = tiny_screen.adata
    label = adata.obs["perturbation"].astype(str)
    adata = adata[(label == "control") | label.str.contains("+", regex=False)]
    screen = read_screen(adata, Setup("perturbation", "control", match_keys=("cell_type",)))
    states = torch.from_numpy(np.log1p(screen.counts.toarray()))
    rule = Recentring(fit_rule(screen, lambda rows: states[torch.from_numpy(rows)], Ledger()), fit_gene_rule(screen, Ledger()))
    described, arrays = rule.to_parts()
    again = Recentring.from_parts(json.loads(json.dumps(described)), arrays)
    for parts in [*combinations(sorted(tiny_screen.perturbations), 2), *combinations(sorted(tiny_screen.perturbations), 3)]:
        spec = ConditionSpec(parts, (1.0,) * len(parts))
        for level, control in zip(rule.genes.measured.levels, rule.genes.measured.control, strict=True):
            assert np.array_equal(rule.genes.effect(spec, level, control), again.genes.effect(spec, level, control))
        assert np.array_equal(rule.states.anchor(spec), again.states.anchor(spec))
