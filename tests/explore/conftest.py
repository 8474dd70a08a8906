"""A small model of a screen with two cell types, and pages that ask it."""

import pytest

from counterflow import CounterFlow
from counterflow.data.simulate import simulate_screen

SMALL = {"n_genes": 60, "n_perturbations": 6, "n_pairs": 5, "cells_per_condition": 40, "cells_control": 120, "n_cell_types": 2}


@pytest.fixture(scope="package")
def screen():
    adata = simulate_screen(seed=4, **SMALL).adata
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], covariate_keys=["batch"])
    return adata


@pytest.fixture(scope="package")
def model(screen, tmp_path_factory):
    """As `counterflow explore` has it: from a file, without its data."""
    model = CounterFlow(screen, space_kwargs={"n_components": 6}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=4, progress=False)
    saved = tmp_path_factory.mktemp("saved") / "model"
    model.save(saved)
    return CounterFlow.load(saved)


@pytest.fixture(scope="package")
def names(model):
    return sorted(model.vocabulary.seen)


@pytest.fixture(scope="package")
def new_pair(model, names):
    together = {spec.parts for spec in model.vocabulary.conditions}
    return next((a, b) for a in names for b in names if a < b and (a, b) not in together)
