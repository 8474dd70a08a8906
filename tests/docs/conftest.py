"""The screens that the pages talk about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterflow.data.simulate import SMALL, simulate_screen


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with the files that the pages name: small simulated screens whose genes have the names of the examples."""
    folder = tmp_path_factory.mktemp("pages")
    adata = simulate_screen(**SMALL | {"cells_per_condition": 40}, seed=1).adata
    labels = list(adata.obs["perturbation"].cat.categories)
    pair = next(name for name in labels if "+" in name).split("+")
    others = [name for name in labels if name != "control" and "+" not in name and name not in pair]
    called = dict(zip([*pair, *others], ["KLF1", "MAP2K6", "TP53", "FOXA1", "GATA1", "MYC"], strict=True))
    called |= dict(zip([name for name in adata.var_names if name not in called], ["HBG1", "HBG2"], strict=False))
    adata.var_names = [called.get(name, name) for name in adata.var_names]
    adata.obs["perturbation"] = [
        "+".join(sorted(called.get(part, part) for part in label.split("+"))) for label in adata.obs["perturbation"]
    ]
    assert {"control", "KLF1", "MAP2K6", "KLF1+MAP2K6"} <= set(adata.obs["perturbation"])
    adata.write_h5ad(folder / "screen.h5ad")
    perturbed = adata.obs.pop("perturbation").astype(str)
    adata.obs["gene"] = np.where(perturbed == "control", "non-targeting", perturbed)
    adata.write_h5ad(folder / "big.h5ad")
    return folder
