"""What tests of every room share: small screens, tiny networks, and `--backbone` for networks of your own."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads cost more than they give, and the suite shares its cores
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # numba (in scanpy) would set the threads of torch as well: they share OpenMP

import numpy as np
import pandas as pd
import pytest
import torch

from counterflow.data.simulate import SMALL, simulate_screen

torch.set_num_threads(1)

SETUP = {"perturbation_key": "perturbation", "control": "control"}


def pytest_addoption(parser):
    parser.addoption(
        "--backbone",
        metavar="PACKAGE.MODULE:NAME",
        help="run the contract tests on this network of yours: pytest tests/contract --backbone ...",
    )


@pytest.fixture(scope="session")
def tiny_screen():
    """4 perturbations, 3 pairs, 30 genes, 295 cells; with its truth. Shared: take a `copy()` of `.adata` before declaring it."""
    return simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3})


@pytest.fixture
def declared(tiny_screen):
    """A copy of the tiny screen's AnnData, declared."""
    from counterflow import CounterFlow

    adata = tiny_screen.adata.copy()
    CounterFlow.setup_anndata(adata, **SETUP)
    return adata


@pytest.fixture
def screen_for(tiny_screen):
    """Backbone -> the tiny screen's AnnData and how to declare it; with times, for a network that reads how effects grow."""
    from counterflow.backbones import reads_courses

    def screen_for(backbone):
        adata = tiny_screen.adata.copy()
        if not reads_courses(backbone):
            return adata, SETUP
        adata.obs["hours"] = np.where(adata.obs["perturbation"] == "control", 0.0, 1.0 + np.arange(adata.n_obs) % 2)
        return adata, SETUP | {"time_key": "hours"}

    return screen_for


@pytest.fixture
def asked_for():
    """Backbone and names -> what to ask for: the names, and at which time where a network wants to know."""
    from counterflow.backbones import reads_courses

    def asked_for(backbone, *names):
        if not reads_courses(backbone):
            return list(names)
        return pd.DataFrame({"perturbation": names, "hours": [2.0 * (name != "control") for name in names]})

    return asked_for


@pytest.fixture
def randomise():
    """A fresh network ends in zeros and passes any test, so no weight is left as it was."""

    def randomise(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.05 if parameter.ndim > 1 else 0.1, generator=generator)
        return module

    return randomise
