"""The named ways from expected counts to counts."""

import numpy as np
import pytest

from counterflow import ConfigError, CounterFlow
from counterflow.sampling import DECODERS
from counterflow.types import ConditionSpec


@pytest.mark.parametrize("space", ["pca", "raw"])
def test_every_decoder_returns_counts_and_only_what_keeps_the_control_cell_resembles_it(declared, tiny_screen, space):
    model = CounterFlow(declared, space=space, source="control", backbone_kwargs={"size": "XS"})
    model.train(max_steps=5, progress=False)
    controls = declared[declared.obs["perturbation"] == "control"]
    name, own = tiny_screen.conditions[0], controls.X.toarray()
    kept = {}
    for decoder in DECODERS:
        cells = model.predict(controls, name, decoder=decoder)
        counts = cells.layers["counts"].toarray()
        assert (counts >= 0).all() and (counts == counts.round()).all() and cells.uns["counterflow"]["sampling"]["decoder"] == decoder
        kept[decoder] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(counts.T, own.T, strict=True) if a.std() and b.std()])
    assert 1 - min(kept["transport"], kept["calibrated"]) < 0.7 * (1 - kept["sample"])  # it adds no noise of its own to what stays
    default = model.predict(controls, name).layers["counts"].toarray()
    chosen = model.predict(controls, name, decoder="calibrated" if space == "pca" else "round").layers["counts"].toarray()
    assert np.array_equal(default, chosen)
    with pytest.raises(ConfigError, match="did you mean 'calibrated'"):
        model.predict(controls, name, decoder="calibrate")


def test_gene_means_are_those_of_the_rule_where_nothing_else_is_trusted(declared, tiny_screen):
    model = CounterFlow(declared, space_kwargs={"n_components": 3}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=5, progress=False)
    model.trust = {}
    controls = declared[declared.obs["perturbation"] == "control"]
    name = tiny_screen.conditions[0]
    before, level = np.asarray(model.predict(controls, name, decoder="transport").X.mean(0)).ravel(), model.rule.genes.measured.levels[0]
    after = np.asarray(model.predict(controls, name).X.mean(0)).ravel()
    own = model.rule.genes.measured.control[0]
    wanted = own + model.rule.genes.effect(ConditionSpec((name,), (1.0,), 0.0), level, own)
    assert np.abs(after - wanted).mean() < 0.5 * np.abs(before - wanted).mean()
    plain = CounterFlow(declared, anchor="none", backbone_kwargs={"size": "XS"})
    plain.train(max_steps=2, progress=False)
    with pytest.raises(ConfigError, match="this model has none"):
        plain.predict(controls, name, decoder="calibrated")


def test_cells_generated_from_noise_get_the_rule_back(declared, tiny_screen):
    """Training takes the additive rule off the targets; with an untrained flow what is generated is the rule."""
    model = CounterFlow(declared, source="noise", coupling="independent", anchor="additive", backbone_kwargs={"size": "XS"})
    model.train(max_steps=200, progress=False)
    name = tiny_screen.conditions[0]
    own, moved = (np.asarray(model.generate(what, 400).X.mean(0)).ravel() for what in ("control", name))
    rows = declared.obs["perturbation"].astype(str)
    real = model.rule.genes.measured.effect[model.rule.genes.measured.spec_of == 0][0]
    assert np.corrcoef(moved - own, real)[0, 1] > 0.7 and (rows == name).any()
