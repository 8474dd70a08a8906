"""The network and its loss: condition encoder + backbone + coupling + time, around the flow of `flow/path.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from counterflow.conditions.encoder import ConditionEncoder
from counterflow.errors import ConfigError, near
from counterflow.flow.choose import choose
from counterflow.flow.coupling import COUPLINGS, Coupling, couple, genot
from counterflow.flow.discrepancy import group_mmd
from counterflow.flow.few_step import intervals, mean_velocity
from counterflow.flow.guidance import bind, classifier_free, composed, contrast
from counterflow.flow.path import Prediction, flow_loss, interpolate, to_velocity, x1_hat
from counterflow.flow.time import TIMES, TimeSampler
from counterflow.memory import in_chunks, kept_per_cell
from counterflow.nn.embed import TimeEmbedding
from counterflow.nn.labels import LabelTable
from counterflow.types import Batch, Condition, ConditionIds, Velocity

Source = Literal["control", "noise"]
SOURCES = ("control", "noise")
GUIDANCE = ("contrast", "classifier_free")
COMBINE = ("encoder", "algebra")
OBJECTIVES = ("flow", "meanflow")

Pairs: TypeAlias = Callable[[Batch, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]
"""(batch, generator) -> source ends, data ends, and the control cells that are a condition (``genot``)."""


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
    objective
        ``flow``: the network learns velocities. ``meanflow``: mean velocities over stretches of time, for one or two steps.
    mmd_weight
        Weight of a second term of the loss: how far the predicted end points of each group are from its cells as a distribution.
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
        mmd_weight: float = 0.0,
        objective: Literal["flow", "meanflow"] = "flow",
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
        if mmd_weight < 0:
            raise ConfigError(f"mmd_weight={mmd_weight:g} must not be negative")
        self.condition_dropout, self.mmd_weight = condition_dropout, mmd_weight
        self._kept: int | None = None  # bytes per cell, measured at the first loss
        n_features = int(torch.Size(state_shape).numel())
        self.origin = nn.Linear(n_features, encoder.width) if coupling == "genot" else None  # reads the paired control cell
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective={objective!r} is unknown: {near(objective, OBJECTIVES)}")
        if objective == "meanflow" and (prediction != "v" or mmd_weight):
            raise ConfigError("objective='meanflow' learns mean velocities: use prediction='v', and no mmd_weight")
        self.objective = objective
        self.span = TimeEmbedding(encoder.width) if objective == "meanflow" else None  # reads how far the network is to look ahead
        if self.span is not None:
            for part in self.modules():
                if isinstance(part, TimeEmbedding):
                    part.time_scale = 1.0  # mean velocities are learnt from a derivative in time, and a rough table drowns it

    def loss(self, batch: Batch, generator: torch.Generator, pairs: Pairs | None = None) -> Tensor:
        """Mean squared velocity error of one batch; all randomness comes from `generator`. `pairs`: where else its ends come from."""
        t = self.time(len(batch.target), generator, batch.target.device)
        r = t
        if self.span is not None:
            t, r = intervals(t, self.time(len(t), generator, t.device), generator)
        x0, x1, origin = (pairs or self.pairs)(batch, generator)
        x_t, velocity = interpolate(x0, x1, t)
        condition = self.dropped_condition(batch.ids, generator, batch.own)
        if batch.own is not None:  # pairing and random numbers are those of the whole step, whoever computes it
            x_t, t, r, velocity = (value[batch.own] for value in (x_t, t, r, velocity))
            origin = None if origin is None else origin[batch.own]
        heard = self._with_origin(condition, origin)
        if self.span is not None:
            velocity = mean_velocity(lambda x, t, r: self.backbone.forward(x, t, self._ahead(heard, r - t)), x_t, t, r, velocity)
            heard = self._ahead(heard, r - t)
        if self._kept is None:
            self._kept = kept_per_cell(self.backbone, x_t, t, heard)
        output = in_chunks(self.backbone, x_t, t, heard, self._kept)
        loss = flow_loss(output, x_t, t, velocity, prediction=self.prediction).mean()
        if self.mmd_weight:
            own = slice(None) if batch.own is None else batch.own
            predicted = x1_hat(x_t, t, to_velocity(output, x_t, t, self.prediction))
            loss = loss + self.mmd_weight * group_mmd(predicted, x1[own], batch.group[own])
        return loss

    def pairs(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cells of the batch, each with the source cell that the coupling gives it."""
        x1 = batch.target
        if self.source == "control":
            assert batch.control is not None
            return couple(self.coupling, batch.control, x1, batch.group, generator), x1, None
        if self.origin is not None:
            assert batch.control is not None
            x0, origin = genot(batch.control, x1, batch.group, generator)
            return x0, x1, origin
        return torch.randn(x1.shape, generator=generator).to(x1), x1, None

    def dropped_condition(self, ids: ConditionIds, generator: torch.Generator, own: Tensor | None) -> Condition:
        """What the network reads in training: some perturbations, covariates and identities are hidden."""
        drop = (torch.rand(len(ids.time), generator=generator) < self.condition_dropout).to(ids.time.device)
        keep = (torch.rand(ids.covariates.shape, generator=generator) >= self.condition_dropout).to(ids.covariates.device)
        return self.encoder(ids._replace(covariates=ids.covariates * keep), drop, generator if self.training else None, own)

    def _with_origin(self, condition: Condition, origin: Tensor | None) -> Condition:
        if self.origin is None or origin is None:
            return condition
        return _with_token(condition, self.origin(origin.flatten(1)))

    def _ahead(self, condition: Condition, span: Tensor) -> Condition:
        """The condition, with how far ahead the mean velocity is to look."""
        assert self.span is not None
        return _with_token(condition, self.span(span).expand(len(condition.pooled), -1))

    def velocity(
        self,
        ids: ConditionIds,
        *,
        origin: Tensor | None = None,
        guidance: float = 1.0,
        guidance_kind: Literal["contrast", "classifier_free"] = "contrast",
        guidance_interval: tuple[float, float] | None = None,
        combine: Literal["encoder", "algebra"] = "encoder",
        until: Tensor | None = None,
    ) -> Velocity:
        """The velocity under `ids`, guided when `guidance` is not 1. `origin`: the control cells, read by ``genot`` only.

        Of a combination either as the encoder pools its parts, or as the sum of what each part alone does (``algebra``). With `until`, the
        mean velocity from the time asked about to this one (``meanflow``).
        """
        if guidance_kind not in GUIDANCE:
            raise ConfigError(f"guidance_kind={guidance_kind!r} is unknown: {near(guidance_kind, GUIDANCE)}")
        if combine not in COMBINE:
            raise ConfigError(f"combine={combine!r} is unknown: {near(combine, COMBINE)}")

        def bound(condition: Condition) -> Velocity:
            return self.bound(condition, origin, until)

        plain = bound(self.encoder(ids))
        if combine == "algebra" and ids.perturbation.shape[1] > 1:
            parts = [bound(self.encoder(one)) for one in _single_parts(ids)]
            plain = composed(bound(self.encoder(_nothing(ids))), parts)
        if guidance == 1.0:
            return plain
        if guidance_kind == "contrast":
            return contrast(plain, bound(self.encoder(_nothing(ids))), guidance, guidance_interval)
        everyone = torch.ones(len(ids.time), dtype=torch.bool, device=ids.time.device)
        return classifier_free(plain, bound(self.encoder(ids, everyone)), guidance, guidance_interval)

    def bound(self, condition: Condition, origin: Tensor | None, until: Tensor | None = None) -> Velocity:
        """The velocity under a condition that is encoded already; see `velocity`."""
        condition = self._with_origin(condition, origin)
        if self.span is None:
            return bind(self.backbone, condition, self.prediction)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            span = torch.zeros_like(t) if until is None else until - t
            heard = Condition(*(part.expand(len(x), *part.shape[1:]) for part in condition))
            return bind(self.backbone, self._ahead(heard, span), self.prediction)(x, t)

        return velocity


def _with_token(condition: Condition, token: Tensor) -> Condition:
    """A condition with one token more, which its pooled vector holds too."""
    tokens = torch.cat([condition.tokens, token[:, None]], dim=1)
    mask = torch.cat([condition.mask, condition.mask.new_ones(len(token), 1)], dim=1)
    return Condition(condition.pooled + token, tokens, mask)


def _nothing(ids: ConditionIds) -> ConditionIds:
    """The control in the same context."""
    zeros = torch.zeros_like(ids.perturbation)
    return ids._replace(perturbation=zeros, dose=torch.zeros_like(ids.dose), time=torch.zeros_like(ids.time))


def _single_parts(ids: ConditionIds) -> list[ConditionIds]:
    """Each part of the combinations alone, in the same context; where a cell has fewer parts, the control."""
    some = (ids.perturbation > 0).any(0).nonzero().flatten().tolist()
    return [ids._replace(perturbation=ids.perturbation[:, k : k + 1], dose=ids.dose[:, k : k + 1]) for k in some]
