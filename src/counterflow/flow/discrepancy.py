"""A second look at a batch: do the predicted end points of a group look like its cells as a crowd?"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels, in units of the mean squared distance of real cells."""


def group_mmd(predicted: Float[Tensor, "b *s"], real: Float[Tensor, "b *s"], group: Int[Tensor, "b"]) -> Tensor:
    """Squared maximum mean discrepancy of predicted and real cells, mean over groups (a distributional term, as in arXiv 2602.07103).

    Unbiased, so it may be slightly negative; the kernel is the mean of Gaussians of several widths. Groups of one cell say nothing.

    Without any group of two cells it is zero.
    """
    found = []
    for value in group.unique():
        rows = group == value
        if rows.sum() > 1:
            found.append(_mmd(predicted[rows].flatten(1).float(), real[rows].flatten(1).float()))
    return torch.stack(found).mean() if found else predicted.new_zeros(())


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    within = _squared(y, y)
    width = (within.sum() / (n * (n - 1))).clamp(min=torch.finfo(y.dtype).tiny).detach()

    def kernel(distance: Tensor) -> Tensor:
        return torch.stack([torch.exp(-distance / (factor * width)) for factor in FACTORS]).mean(0)

    def of_others(values: Tensor) -> Tensor:
        return (values.sum() - values.diagonal().sum()) / (n * (n - 1))

    return of_others(kernel(_squared(x, x))) + of_others(kernel(within)) - 2 * kernel(_squared(x, y)).mean()


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
