"""How a network uses a CPU: on how many threads, and by which library it multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

SMALL = 1_000_000  # parameters


@contextmanager
def at_work(network: nn.Module) -> Iterator[None]:
    """Inside, `network` is trained or asked: `threads_for` it, and `quick_products`."""
    with ExitStack() as stack:
        stack.enter_context(threads_for(network))
        stack.enter_context(quick_products())
        yield


@contextmanager
def threads_for(network: nn.Module) -> Iterator[None]:
    """One thread inside, for a network of fewer than a million parameters; what was set before is restored.

    Small networks: a second thread gains next to nothing, and costs a multiple where other programs want the core.
    """
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in network.parameters()) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quick_products() -> Iterator[None]:
    """Inside, fp32 products on a CPU go through oneDNN where that is as exact as MKL and may be quicker.

    MKL leaves AVX-512 unused on processors that are not Intel's; oneDNN does not (twice as fast, see `benchmarks/speed.py`). torch asks
    oneDNN only where it is allowed to compute in bfloat16, which it does on processors with AMX and on no others: there, and where this
    torch or this processor do not say what they can, nothing is changed.
    """
    if not onednn_is_exact():
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def onednn_is_exact() -> bool:
    """Whether oneDNN, though allowed less, multiplies in fp32 on this processor, and no GPU is there (whose settings hang together)."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    can = {} if tell is None else tell()
    known = hasattr(torch.backends.mkldnn, "matmul") and torch.backends.mkldnn.is_available() and "amx_bf16" in can
    return known and bool(can.get("avx512_bw")) and not can["amx_bf16"] and not can.get("amx_tile") and not torch.cuda.is_available()
