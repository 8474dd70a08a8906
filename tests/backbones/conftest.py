import pytest
import torch

from counterflow.types import Condition

CONDITION_DIM = 12


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def randomise():
    """A zero-initialised model passes any test, so no weight is left as it was."""

    def randomise(module):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.05 if parameter.ndim > 1 else 0.1)
        return module

    return randomise


@pytest.fixture
def make_condition():
    """A condition of three tokens, of which the last is padding."""

    def make_condition(batch):
        mask = torch.tensor([[True, True, False]]).expand(batch, -1)
        return Condition(torch.randn(batch, CONDITION_DIM), torch.randn(batch, 3, CONDITION_DIM), mask)

    return make_condition
