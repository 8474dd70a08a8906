"""Predictions some cells at a time are those of one piece, to the bit."""

import anndata
import numpy as np
import pytest

from counterflow import CounterFlow
from counterflow.errors import ConfigError
from counterflow.prediction import BLOCK
from counterflow.sampling import Sampling

DECLARED = {"perturbation_key": "perturbation", "control": "control", "match_keys": ["cell_type"], "covariate_keys": ["cell_type"]}


@pytest.fixture(scope="module")
def model(tiny_screen):
    adata = tiny_screen.adata.copy()
    CounterFlow.setup_anndata(adata, **DECLARED)
    model = CounterFlow(adata, space_kwargs={"n_components": 5})
    model.train(max_steps=3, progress=False)
    return model


def same(blocks, whole):
    found = anndata.concat(blocks)
    assert found.obs.astype(str).equals(whole.obs.astype(str)) and found.obs_names.equals(whole.obs_names)
    for layer in ("counts", "mean"):
        a, b = (np.asarray(x.layers[layer].toarray() if layer == "counts" else x.layers[layer]) for x in (found, whole))
        assert a.tobytes() == b.tobytes(), layer
    assert (found.X != whole.X).nnz == 0


def test_counterfactual_cells_are_the_same_in_blocks(model):
    names = sorted(model.vocabulary.seen)[:2]
    asked = ["+".join(names), names[0]]
    whole = model.predict(conditions=asked, n_cells=700, seed=3)  # more than there are controls: some are used again
    blocks = list(model.predict_in_blocks(conditions=asked, n_cells=700, sampling=Sampling(seed=3), cells_per_block=100, progress=False))
    assert [block.n_obs for block in blocks] == 2 * [BLOCK, BLOCK, 700 - 2 * BLOCK]
    assert blocks[0].uns["counterflow"] == whole.uns["counterflow"]
    same(blocks, whole)


def test_new_cells_are_the_same_in_blocks(model):
    name = sorted(model.vocabulary.seen)[0]
    whole = model.generate(name, 600, seed=3)
    blocks = list(model.generate_in_blocks(name, 600, seed=3, cells_per_block=256, progress=False))
    assert [block.n_obs for block in blocks] == [256, 256, 88]
    same(blocks, whole)


@pytest.mark.parametrize("skipped", [1, 2, 4])
def test_blocks_that_are_there_are_not_made_again(model, skipped):
    names = sorted(model.vocabulary.seen)[:2]
    how = {"cells_per_block": 256, "progress": False}
    for ask, more in ((model.predict_in_blocks, {"conditions": names}), (model.generate_in_blocks, {"conditions": names})):
        blocks = list(ask(**more, n_cells=600, **how))
        rest = list(ask(**more, n_cells=600, skip_blocks=skipped, **how))
        assert len(blocks) == 6 and len(rest) == 6 - skipped
        same(rest, anndata.concat(blocks[skipped:]))


def test_blocks_of_no_cells_are_refused(model):
    with pytest.raises(ConfigError, match="cells_per_block=0"):
        list(model.predict_in_blocks(cells_per_block=0))
    with pytest.raises(ConfigError, match="skip_blocks=-1"):
        list(model.generate_in_blocks("control", 5, skip_blocks=-1))
