"""The two kinds of linear layer the networks start from."""

from __future__ import annotations

from torch import nn


def xavier_linear(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, as in DiT."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer that outputs 0 until it is trained: what it feeds starts as if it were not there."""
    layer = nn.Linear(n_in, n_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
