"""Networks built as a file says, no larger than the file: a width of 10^12 in a changed file costs neither memory nor time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules import module as registration

from counterflow.errors import CheckpointError

_SLACK = 10  # tables that are computed and not saved, and so not in the file


@contextmanager
def no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a module (of this thread) with many more weights than these is refused as soon as it asks for them.

    A weight is asked for before it is filled with numbers, so what is refused has cost address space only.
    """
    tensors = _SLACK * (len(weights) + 10)
    values = _SLACK * (sum(weight.numel() for weight in weights.values()) + 1000)
    thread = threading.get_ident()

    def count(owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, values
        del owner
        if tensor is None or threading.get_ident() != thread:
            return
        tensors, values = tensors - 1, values - tensor.numel()
        if min(tensors, values) < 0:
            raise CheckpointError(f"its options ask for a network larger than its weights ({name} is one too many): the file was changed")

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
