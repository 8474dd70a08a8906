"""One small screen in every place that counts can come from."""

import numpy as np
import pytest

from counterflow.data import stored
from counterflow.data.convert import convert
from counterflow.data.schema import Setup


@pytest.fixture
def setup():
    """How the screen in `places` is declared."""
    return Setup("perturbation", "control", match_keys=("cell_type",), covariate_keys=("cell_type",))


@pytest.fixture
def places(tiny_screen, setup, tmp_path, monkeypatch):
    """Place -> the same AnnData; its cells are in random order, two of them empty."""
    monkeypatch.setattr(stored, "_known", {})
    adata = tiny_screen.adata[np.random.default_rng(0).permutation(tiny_screen.adata.n_obs)].copy()
    dense = adata.X.toarray()
    dense[[3, 10]] = 0
    adata.X = type(adata.X)(dense)
    found = {"memory": adata}
    for place in ("file", "cache"):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "screen.h5ad"
        adata.write_h5ad(path)
        if place == "cache":
            convert(path, setup)
        found[place] = stored.open_h5ad(path)
    return found
