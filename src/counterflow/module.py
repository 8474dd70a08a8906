"""The network and its loss: condition encoder + backbone + coupling + time, around the flow of `flow/path.py`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from counterflow.conditions.encoder import ConditionEncoder
from counterflow.errors import ConfigError, near
from counterflow.flow.choose import choose
from counterflow.flow.coupling import COUPLINGS, Coupling, couple, genot
from counterflow.flow.guidance import bind, classifier_free, contrast
from counterflow.flow.path import Prediction, flow_loss, interpolate
from counterflow.flow.time import TIMES, TimeSampler
from counterflow.memory import in_chunks, kept_per_cell
from counterflow.nn.labels import LabelTable
from counterflow.types import Batch, Condition, ConditionIds, Velocity

Source = Literal["control", "noise"]
SOURCES = ("control", "noise")
GUIDANCE = ("contrast", "classifier_free")


class FlowModule(nn.Module):
    """A conditional rectified flow on states of any shape.

    Parameters
    ----------
    backbone
        Any network `velocity = backbone(x, t, condition)`.
    encoder
        Turns condition ids into what the backbone reads: a `ConditionEncoder` for cells, a `LabelTable` for images.
    source
        What flows: ``control`` cells of the same group, or ``noise`` N(0, I).
    coupling
        How source cells are paired with targets; ``genot`` (noise source) reads the paired control as a further condition.
    prediction
        What the network's output means: the velocity ``v`` or the data end ``x``.
    time
        Density of flow times in training.
    condition_dropout
        Probability that a cell's perturbation is replaced by the null, and that each of its covariates is.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: ConditionEncoder | LabelTable,
        state_shape: tuple[int, ...],
        *,
        source: Source = "control",
        coupling: str | Coupling = "ot",
        prediction: Prediction = "v",
        time: str | TimeSampler = "uniform",
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if source not in SOURCES:
            raise ConfigError(f"source={source!r} is unknown: {near(source, SOURCES)}")
        if source == "noise" and coupling == "ot":
            raise ConfigError("coupling='ot' pairs control cells with perturbed ones: with source='noise' use 'independent' or 'genot'")
        if source == "control" and coupling == "genot":
            raise ConfigError("coupling='genot' starts from noise: use source='noise', or coupling='ot' with source='control'")
        choose(coupling, COUPLINGS, "coupling")
        self.backbone, self.encoder = backbone, encoder
        self.source, self.coupling, self.prediction = source, coupling, prediction
        self.time = choose(time, TIMES, "time")
        self.condition_dropout = condition_dropout
        self._kept: int | None = None  # bytes per cell, measured at the first loss
        n_features = int(torch.Size(state_shape).numel())
        self.origin = nn.Linear(n_features, encoder.width) if coupling == "genot" else None  # reads the paired control cell

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared velocity error of one batch; all randomness comes from `generator`."""
        x1, origin = batch.target, None
        t = self.time(len(x1), generator, x1.device)
        if self.source == "control":
            assert batch.control is not None
            x0 = couple(self.coupling, batch.control, x1, batch.group, generator)
        elif self.origin is not None:
            assert batch.control is not None
            x0, origin = genot(batch.control, x1, batch.group, generator)
        else:
            x0 = torch.randn(x1.shape, generator=generator).to(x1)
        x_t, velocity = interpolate(x0, x1, t)
        condition = self._dropped_condition(batch.ids, generator, batch.own)
        if batch.own is not None:  # pairing and random numbers are those of the whole step, whoever computes it
            x_t, t, velocity = (value[batch.own] for value in (x_t, t, velocity))
            origin = None if origin is None else origin[batch.own]
        heard = self._with_origin(condition, origin)
        if self._kept is None:
            self._kept = kept_per_cell(self.backbone, x_t, t, heard)
        output = in_chunks(self.backbone, x_t, t, heard, self._kept)
        return flow_loss(output, x_t, t, velocity, prediction=self.prediction).mean()

    def _dropped_condition(self, ids: ConditionIds, generator: torch.Generator, own: Tensor | None) -> Condition:
        drop = (torch.rand(len(ids.time), generator=generator) < self.condition_dropout).to(ids.time.device)
        keep = (torch.rand(ids.covariates.shape, generator=generator) >= self.condition_dropout).to(ids.covariates.device)
        return self.encoder(ids._replace(covariates=ids.covariates * keep), drop, generator if self.training else None, own)

    def _with_origin(self, condition: Condition, origin: Tensor | None) -> Condition:
        if self.origin is None or origin is None:
            return condition
        start = self.origin(origin.flatten(1))
        tokens = torch.cat([condition.tokens, start[:, None]], dim=1)
        mask = torch.cat([condition.mask, condition.mask.new_ones(len(start), 1)], dim=1)
        return Condition(condition.pooled + start, tokens, mask)

    def velocity(
        self,
        ids: ConditionIds,
        *,
        origin: Tensor | None = None,
        guidance: float = 1.0,
        guidance_kind: Literal["contrast", "classifier_free"] = "contrast",
        guidance_interval: tuple[float, float] | None = None,
    ) -> Velocity:
        """The velocity under `ids`, guided when `guidance` is not 1. `origin`: the control cells, read by ``genot`` only."""
        if guidance_kind not in GUIDANCE:
            raise ConfigError(f"guidance_kind={guidance_kind!r} is unknown: {near(guidance_kind, GUIDANCE)}")
        plain = self._bound(self.encoder(ids), origin)
        if guidance == 1.0:
            return plain
        if guidance_kind == "contrast":
            nothing = torch.zeros_like(ids.perturbation)
            control = ids._replace(perturbation=nothing, dose=torch.zeros_like(ids.dose), time=torch.zeros_like(ids.time))
            return contrast(plain, self._bound(self.encoder(control), origin), guidance, guidance_interval)
        everyone = torch.ones(len(ids.time), dtype=torch.bool, device=ids.time.device)
        return classifier_free(plain, self._bound(self.encoder(ids, everyone), origin), guidance, guidance_interval)

    def _bound(self, condition: Condition, origin: Tensor | None) -> Velocity:
        return bind(self.backbone, self._with_origin(condition, origin), self.prediction)
