"""Cells measured on gene panels of their own."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.errors import ConfigError
from counterflow.types import Condition

S, C = 40, 12
SMALL = {"width": 32, "depth": 2, "n_heads": 2}
PANELS = (17, 1, 40, 8)


@pytest.mark.parametrize("conditioning", ["adaln", "cross", "in_context"])
@pytest.mark.parametrize(("name", "kwargs"), [("set", {}), ("dit", {"genes_per_token": 1}), ("ssm", {"order": "none"})])
def test_each_cell_is_as_if_alone(name, kwargs, conditioning, randomise, make_condition):
    model = randomise(build(name, (S,), C, conditioning=conditioning, **SMALL, **kwargs)).double()
    n = len(PANELS)
    features = [torch.randperm(S)[:size] for size in PANELS]
    x, t = [torch.randn(size).double() for size in PANELS], torch.rand(n).double()
    pooled, tokens, mask = make_condition(n)
    condition = Condition(pooled.double(), tokens.double(), mask)
    together = model.panels(x, t, condition, features)
    for i in range(n):
        alone = model(x[i][None], t[i : i + 1], Condition(*(part[i : i + 1] for part in condition)), features=features[i])
        torch.testing.assert_close(together[i], alone[0])
    assert [len(velocity) for velocity in together] == list(PANELS)
    assert all((velocity != 0).any() for velocity in together)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("ssm", {}), ("dit", {"genes_per_token": 2}), ("ssm", {"order": "none", "genes_per_token": 2})]
)
def test_networks_with_an_order_or_module_tokens_refuse(name, kwargs, make_condition):
    model = build(name, (S,), C, **SMALL, **kwargs)
    with pytest.raises(ConfigError, match="no common order"):
        model.panels([torch.randn(3), torch.randn(2)], torch.rand(2), make_condition(2), [torch.arange(3), torch.arange(2)])
