"""A class label as a condition: a table with one row per class, and one for "no label"."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.types import Condition, ConditionIds


def class_ids(labels: Int[Tensor, "b"]) -> ConditionIds:
    """Labels 0 .. n - 1 in the form in which the data package emits conditions; label n is "no label", like an empty perturbation set."""
    nothing = torch.zeros(len(labels), device=labels.device)
    return ConditionIds(labels[:, None] + 1, nothing[:, None], nothing, labels.new_zeros(len(labels), 0))


class LabelTable(nn.Module):
    """The condition encoder of class-conditional images (DiT, arXiv 2212.09748): pooled vector and single token are the label's row.

    Parameters
    ----------
    n_classes
        Number of classes.
    width
        Width of the rows: that of the trunk, which adds them to the embedded time as they are.
    dropout
        Probability in training that a label is replaced by the null row, when the caller does not say which ones are.
        0: there is no null row.
    """

    def __init__(self, n_classes: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ConfigError(f"the label dropout is a probability, not {dropout}")
        self.n_classes, self.width, self.dropout = n_classes, width, dropout
        self.table = Parameter(0.02 * torch.randn(n_classes + (dropout > 0), width))

    def forward(
        self,
        ids: ConditionIds,
        drop: Bool[Tensor, "b"] | None = None,
        generator: torch.Generator | None = None,
        own: Int[Tensor, "o"] | None = None,
    ) -> Condition:
        """Rows of the labels `ids` (see `class_ids`); the null row where `drop` is True or there is no label.

        In training, where `drop` is None, labels are dropped at random. With `own`, only these rows are looked up.

        Raises
        ------
        ConfigError
            If a label is to be dropped and the table has no null row.
        """
        labels = ids.perturbation[:, 0] - 1
        if drop is None and self.training and self.dropout:
            drop = (torch.rand(len(labels), generator=generator) < self.dropout).to(labels.device)
        null = labels < 0 if drop is None else drop | (labels < 0)
        if not self.dropout and null.any():
            raise ConfigError("this label table has no row for 'no label': build it with a dropout above 0")
        labels = torch.where(null, self.n_classes, labels)
        rows = self.table[labels if own is None else labels[own]]
        return Condition(rows, rows[:, None], rows.new_ones(len(rows), 1, dtype=torch.bool))
