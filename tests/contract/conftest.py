"""Which networks the contract is about: ours under every conditioning, or the one named by `--backbone`."""

import inspect
from functools import partial

import pytest

from counterflow import CounterFlow
from counterflow.backbones import BACKBONES, resolve

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
def declared(declared, request):
    """The tiny screen; with times, for a network that reads how effects grow."""
    if "backbone" not in request.fixturenames:
        return declared
    adata, setup = request.getfixturevalue("screen_for")(request.getfixturevalue("backbone"))
    CounterFlow.setup_anndata(adata, **setup)
    return adata


@pytest.fixture
def asked(asked_for, backbone):
    """What to ask for, by names."""
    return partial(asked_for, backbone)


@pytest.fixture
def backbone_kwargs(backbone):
    return OF_OURS if backbone in BACKBONES else {}


@pytest.fixture
def state_shape(backbone):
    return IMAGES.get(backbone, (30,))
