"""Which networks the contract is about: ours under every conditioning, or the one named by `--backbone`."""

import inspect

import numpy as np
import pandas as pd
import pytest

from counterflow import CounterFlow
from counterflow.backbones import BACKBONES, reads_courses, resolve

SETUP = {"perturbation_key": "perturbation", "control": "control"}

OF_OURS = {"width": 16, "depth": 1, "n_heads": 2}  # tiny: what holds for one block holds for twelve
IMAGES = {"image_dit": (3, 4, 6)}  # backbones whose state is an image: they are not asked about cells


def pytest_generate_tests(metafunc):
    if not {"backbone", "conditioning"} <= set(metafunc.fixturenames):
        return
    yours = metafunc.config.getoption("--backbone")
    names = [yours] if yours else [name for name in BACKBONES if name not in IMAGES or "declared" not in metafunc.fixturenames]
    metafunc.parametrize(("backbone", "conditioning"), [(name, how) for name in names for how in _conditionings(name)])


def _conditionings(name):
    """A network without an argument `conditioning` has one way of its own, which goes under the name of the default."""
    return ("adaln", "cross") if "conditioning" in inspect.signature(resolve(name)).parameters else ("adaln",)


@pytest.fixture
def declared(declared, request, tiny_screen):
    """The tiny screen; with times, for a network that reads how effects grow."""
    if "backbone" not in request.fixturenames or not reads_courses(request.getfixturevalue("backbone")):
        return declared
    adata = tiny_screen.adata.copy()
    adata.obs["hours"] = np.where(adata.obs["perturbation"] == "control", 0.0, 1.0 + np.arange(adata.n_obs) % 2)
    CounterFlow.setup_anndata(adata, **SETUP, time_key="hours")
    return adata


@pytest.fixture
def asked(backbone):
    """What to ask for: names, and at which time where a network wants to know."""

    def asked(*names):
        return (
            pd.DataFrame({"perturbation": names, "hours": [2.0 * (n != "control") for n in names]})
            if reads_courses(backbone)
            else list(names)
        )

    return asked


@pytest.fixture
def backbone_kwargs(backbone):
    return OF_OURS if backbone in BACKBONES else {}


@pytest.fixture
def state_shape(backbone):
    return IMAGES.get(backbone, (30,))
