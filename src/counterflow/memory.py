"""Training steps that fit into memory, whatever the network: cells in chunks, each recomputed in the backward pass; and peak memory.

A network with one token per gene keeps gigabytes for a batch of 512 cells. Every cell is computed on its own, so the loss of a batch is the
same in chunks; only the memory, and a third more work, differ.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from counterflow.types import Condition

MOST_KEPT = 2 * 2**30  # bytes that the forward pass of a batch may keep for the backward pass


def kept_per_cell(network: nn.Module, x: Float[Tensor, "b *s"], t: Float[Tensor, "b"], condition: Condition) -> int:
    """Bytes that `network` keeps per cell for its backward pass, measured on two cells and four; weights do not count."""
    two, four = (_kept(network, *_rows(slice(0, n), len(x), x, t, condition)) for n in (2, 4))
    return max(1, (four - two) // 2)


def in_chunks(
    network: nn.Module, x: Float[Tensor, "b *s"], t: Float[Tensor, "b"], condition: Condition, per_cell: int
) -> Float[Tensor, "b *s"]:
    """``network(x, t, condition)``, in as many chunks as keep it under `MOST_KEPT`; at once where all fits."""
    if not torch.is_grad_enabled() or len(chunks := chunks_of(len(x), per_cell)) == 1:
        return network(x, t, condition)
    return torch.cat([checkpoint(network, *_rows(rows, len(x), x, t, condition), use_reentrant=False) for rows in chunks])


def chunks_of(n: int, per_cell: int) -> list[slice]:
    """Rows of n cells, as many together as keep under `MOST_KEPT`; at least one chunk."""
    at_once = max(1, MOST_KEPT // per_cell)
    return [slice(start, start + at_once) for start in range(0, max(n, 1), at_once)]


def _rows(rows: slice, n: int, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Condition]:
    """Some cells of a batch of `n`; what has one row for all cells keeps it."""
    return x[rows], t[rows], Condition(*(value[rows] if len(value) == n else value for value in condition))


def _kept(network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # `forward` itself: a call would go through torch.compile and trace graphs for these sizes
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.forward(x.detach(), t, Condition(*(value.detach() for value in condition)))
    return sum(kept.values())


def forget_peak_memory() -> None:
    """Measure the peak anew from here, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory() -> int:
    """Bytes of the largest resident set of this process since `forget_peak_memory`, or since its start where that cannot be told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else 1024 * largest
