"""What must not be computed in bfloat16, whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(*tensors: Tensor) -> list[Tensor]:
    """The tensors in fp32, or as they are if more precise."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
