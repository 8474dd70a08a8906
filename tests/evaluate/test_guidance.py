"""The scale that makes the mean right is chosen, on the cells of one set only, and the ledger knows which."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from counterflow.data.ledger import Ledger, hashes
from counterflow.data.schema import Setup, declare
from counterflow.errors import ConfigError, DataError
from counterflow.evaluate.guidance import choose_guidance


class Scaled:
    """Half of the true effect, times the guidance scale."""

    def __init__(self, simulated):
        self.simulated, self.ledger, self.genes = simulated, Ledger(), tuple(simulated.adata.var_names)

    def predict(self, adata, conditions, guidance):
        name = conditions["perturbation"].iloc[0]
        effect = self.simulated.true_mean(name) - self.simulated.true_mean("control")
        x = adata.X.toarray()
        cells = np.log1p(1e4 * x / x.sum(1, keepdims=True)) + guidance * 0.5 * effect
        return AnnData(sparse.csr_matrix(cells), obs=adata.obs.copy(), var=adata.var.copy())


@pytest.fixture
def adata(simulated):
    adata = simulated.adata.copy()
    pair = adata.obs["perturbation"][adata.obs["split"] == "test"].iloc[0]
    adata.obs["split"] = np.where(adata.obs["perturbation"] == pair, "val", adata.obs["split"].astype(str))
    adata.obs.loc[adata.obs_names[adata.obs["perturbation"] == "control"][:30], "split"] = "test"
    declare(adata, Setup("perturbation", "control", split_key="split"))
    return adata


def test_the_scale_that_fits_is_chosen_and_its_cells_are_recorded(simulated, adata):
    model = Scaled(simulated)
    assert choose_guidance(model, adata, (0.5, 1.0, 2.0, 4.0)) == 2.0
    control = adata.obs["perturbation"] == "control"
    looked_at = adata.obs_names[(adata.obs["split"] == "val") | (control & (adata.obs["split"] != "test"))]
    assert sorted(model.ledger.seen["guidance"].name) == sorted(hashes(list(looked_at)))


def test_nothing_to_choose_on_or_from_is_an_error(simulated, adata):
    with pytest.raises(ConfigError, match="scales is empty"):
        choose_guidance(Scaled(simulated), adata, ())
    with pytest.raises(DataError, match="is in 'val'"):
        choose_guidance(Scaled(simulated), simulated.adata)
