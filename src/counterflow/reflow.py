"""Training a second time, on the pairs that a first network made (`flow/few_step.py` says why)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.flow.solvers import last_step_euler, midpoint
from counterflow.module import FlowModule
from counterflow.sampling import STEPS
from counterflow.types import Batch


class Reflow(nn.Module):
    """The loss of `module` on source cells and where the flow of `teacher` takes them, under the very conditions that `module` hears."""

    def __init__(self, module: FlowModule, teacher: FlowModule) -> None:
        super().__init__()
        self.module = module
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple it is not a part: its weights are not trained

    @property
    def backbone(self) -> nn.Module:
        """The network that is trained."""
        return self.module.backbone

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `FlowModule.loss`, on the teacher's pairs."""
        return self.module.loss(batch, generator, self.pairs)

    @torch.no_grad()
    def pairs(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """The source cells of the batch, and where they end."""
        (teacher,) = self._teacher
        teacher.to(batch.target.device).train(self.training)
        x0, x1, origin = self.module.pairs(batch, generator)
        before = generator.get_state()
        condition = teacher.dropped_condition(batch.ids, generator, batch.own)
        generator.set_state(before)  # the module draws the same next: teacher and pupil are in the dark about the same things
        own = slice(None) if batch.own is None else batch.own
        ends = x1.clone()  # of rows that another process computes, nothing is asked
        solver = last_step_euler(midpoint) if teacher.prediction == "x" else midpoint
        velocity = teacher.bound(condition, None if origin is None else origin[own])
        ends[own] = solver(velocity, x0[own], torch.linspace(0, 1, STEPS[teacher.source] + 1)).to(x1)
        return x0, ends, origin
