"""The network and its loss, as `counterflow.module.FlowModule` is for flows: the same backbone and labels under the other objective."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from counterflow.diffusion.guidance import Guided, classifier_free
from counterflow.diffusion.loss import hybrid_loss
from counterflow.diffusion.reverse import Denoiser
from counterflow.diffusion.schedule import Schedule, add_noise, linear_schedule
from counterflow.types import Batch, ConditionIds


class DiffusionModule(nn.Module):
    """A conditional diffusion model of images.

    Parameters
    ----------
    backbone
        `backbone(x, time, condition)` gives the noise, or noise and variance, such as `image_dit(..., objective="ddpm")`.
    encoder
        Turns condition ids into what the backbone reads: `encoder(ids, drop)`, with the null where `drop` is True.
    schedule
        None: `linear_schedule()`.
    condition_dropout
        Probability that an image's condition is replaced by the null in training.
    """

    def __init__(
        self, backbone: nn.Module, encoder: nn.Module, schedule: Schedule | None = None, *, condition_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone, self.encoder = backbone, encoder
        self.schedule = schedule or linear_schedule()
        self.condition_dropout = condition_dropout

    def loss(self, batch: Batch, generator: Generator) -> Tensor:
        """Mean hybrid loss of one batch, times drawn uniformly; all randomness comes from `generator`."""
        x0 = batch.target
        i = torch.randint(len(self.schedule), (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        drop = (torch.rand(len(x0), generator=generator) < self.condition_dropout).to(x0.device)
        x = add_noise(self.schedule, x0, noise, i)
        ids = batch.ids
        if batch.own is not None:  # random numbers are those of the whole step, whoever computes it
            x0, i, noise, drop, x = (value[batch.own] for value in (x0, i, noise, drop, x))
            ids = ConditionIds(*(column[batch.own] for column in ids))
        output = self.backbone(x, self.schedule.times[i].to(x), self.encoder(ids, drop))
        return hybrid_loss(self.schedule, output, x0, x, noise, i).mean()

    def denoiser(self, ids: ConditionIds, *, guidance: float = 1.0, channels: Guided = "all") -> Denoiser:
        """The network under `ids`, guided away from the null when `guidance` is not 1; `ddpm` and `ddim` follow it."""
        everyone = torch.ones(len(ids.time), dtype=torch.bool, device=ids.time.device)
        of_condition = self._bound(ids, ~everyone)
        return of_condition if guidance == 1 else classifier_free(of_condition, self._bound(ids, everyone), guidance, channels)

    def _bound(self, ids: ConditionIds, drop: Tensor) -> Denoiser:
        condition = self.encoder(ids, drop)
        return lambda x, time: self.backbone(x, time, condition)
