"""Models of scvi-tools are pickles: they are read only for a caller who says that their code may run."""

import pathlib

import numpy as np
import pytest
import torch

from counterflow import ConfigError, CounterFlow, DataError
from counterflow.spaces.latent import load_scvi


class Mark:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.fixture(scope="module")
def theirs(tiny_screen, tmp_path_factory):
    """A trained model of scvi-tools on disk, and its cells."""
    import scvi

    cells = tiny_screen.adata.copy()
    scvi.model.SCVI.setup_anndata(cells)
    with torch.random.fork_rng(devices=[]):
        model = scvi.model.SCVI(cells, n_hidden=8, n_latent=4, gene_likelihood="nb")
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
    folder = tmp_path_factory.mktemp("scvi") / "model"
    model.save(folder)
    return folder, model


def test_without_trust_nothing_of_it_is_read(theirs, tiny_screen, tmp_path):
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    folder.mkdir()
    torch.save({"model_state_dict": {}, "evil": Mark(mark)}, folder / "model.pt")
    for trust in ({}, {"trust": False}, {"trust": "no"}, {"trust": 1}):
        with pytest.raises(ConfigError, match=r"unpickles its models, and a pickle can run any code.*trust=True"):
            load_scvi(folder, tiny_screen.adata.copy(), **trust)
    assert not mark.exists()
    with pytest.raises(ConfigError, match="scvi-tools cannot load"):
        load_scvi(folder, tiny_screen.adata.copy(), trust=True)
    assert mark.exists()  # this is what was refused


def test_no_option_of_a_saved_model_can_ask_for_it(declared, theirs):
    for options in ({"scvi": str(theirs[0])}, {"trust": True}):
        with pytest.raises(ConfigError, match="has no option"):
            CounterFlow(declared, space="latent", space_kwargs=options)


def test_with_trust_it_is_the_space_of_a_model(theirs, declared, tiny_screen, tmp_path):
    folder, original = theirs
    loaded = load_scvi(folder, tiny_screen.adata.copy(), trust=True)
    assert all(torch.equal(value, original.module.state_dict()[name]) for name, value in loaded.module.state_dict().items())
    model = CounterFlow(declared, space=loaded, backbone_kwargs={"width": 8, "depth": 1}, encoder_kwargs={"width": 8}, anchor="none")
    model.train(max_steps=1, progress=False)
    assert model.ledger is not None and len(model.ledger.seen["vae"].name) > 0
    model.save(tmp_path / "model")
    again = CounterFlow.load(tmp_path / "model")  # ours: no pickle any more
    assert np.array_equal(again.generate("control", 4).layers["mean"], model.generate("control", 4).layers["mean"])


def test_what_is_not_there_or_does_not_fit(theirs, tiny_screen, tmp_path):
    with pytest.raises(ConfigError, match="holds no model of scvi-tools"):
        load_scvi(tmp_path, tiny_screen.adata.copy(), trust=True)
    other = tiny_screen.adata[:, :20].copy()
    with pytest.raises((ConfigError, DataError), match="scvi-tools cannot load"):
        load_scvi(theirs[0], other, trust=True)
