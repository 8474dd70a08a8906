"""Small networks run on one thread: a second gains next to nothing, and costs a multiple where other programs want the core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 1_000_000  # parameters


@contextmanager
def threads_for(network: nn.Module) -> Iterator[None]:
    """One thread inside, for a network of fewer than a million parameters; what was set before is restored."""
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in network.parameters()) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
