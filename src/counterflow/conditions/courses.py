"""Courses: how a population moved over the times, or the doses, at which it was measured, and an encoder that reads them.

A course belongs to one perturbation (or combination). Its points are the mean effects on the training populations, in state space, at
the measured times; in a screen without times, at the measured doses, on a scale of log(1 + dose). Before the first point there is none:
at time 0 and at dose 0 the effect is 0. `CourseEncoder` runs a causal SSM over the points up to the one that is asked for and adds what
it has come to as a token of the condition, `COURSE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterflow.conditions.encoder import ConditionEncoder
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.nn.relaxation import Relaxation
from counterflow.types import COURSE, Condition, ConditionIds, ConditionSpec

Axis = Literal["time", "dose"]
ANSWER_DROPOUT = 0.75  # of the point that is asked for: seldom shown, so that it is forecast, and still known where the last one was
_NOWHERE = -1.0
_EQUAL = 1e-5  # relative: points of a course that differ by less are the same
_SAME_DOSE = 1e-3  # relative: doses that differ by less are on the same course


class Courses(NamedTuple):
    """R courses of L points at most, of combinations of K parts at most; padding is at -1."""

    axis: Tensor  # 0: time, 1: dose
    parts: Int[Tensor, "r k"]  # entities as in `ConditionIds`
    dose: Float[Tensor, "r k"]  # of the parts: their doses, or on the axis of doses, their shares of the mean dose
    at: Float[Tensor, "r l"]  # ascending
    effect: Float[Tensor, "r l s"]

    @classmethod
    def none(cls, axis: Axis, n_features: int) -> Courses:
        """Before anything was measured."""
        return cls(
            torch.tensor(("time", "dose").index(axis)),
            torch.zeros(0, 1, dtype=torch.long),
            torch.zeros(0, 1),
            torch.zeros(0, 1),
            torch.zeros(0, 1, n_features),
        )

    @classmethod
    def measured(cls, specs: Sequence[ConditionSpec], effects: Tensor, vocabulary: Vocabulary, axis: Axis) -> Courses:
        """From the mean effect (n x S) of each measured condition."""
        none = cls.none(axis, effects.shape[1])
        ids = vocabulary.ids(specs, {key: [""] * len(specs) for key in vocabulary.covariates})
        dose, at = none.place(ids)
        together: dict[tuple[float, ...], list[int]] = {}
        for i in range(len(specs)):
            together.setdefault((*ids.perturbation[i].tolist(), *(float(f"{d:.4g}") for d in dose[i].tolist())), []).append(i)
        rows = [sorted(members, key=lambda i: float(at[i])) for members in together.values()]
        length = max(map(len, rows), default=1)
        first = [members[0] for members in rows]
        times, values = torch.full((len(rows), length), _NOWHERE), torch.zeros(len(rows), length, effects.shape[1])
        for r, members in enumerate(rows):
            times[r, : len(members)], values[r, : len(members)] = at[members], effects[members]
        return cls(none.axis, ids.perturbation[first], dose[first], times, values)

    @classmethod
    def stored(cls, weights: Mapping[str, Tensor], prefix: str) -> Courses | None:
        """Among the weights of a model that has them."""
        found = {name: weights.get(prefix + name) for name in cls._fields}
        return None if any(value is None for value in found.values()) else cls(**found)  # type: ignore[arg-type]

    def place(self, ids: ConditionIds) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b"]]:
        """Doses that tell one course from another, and where on its course a condition is."""
        real = ids.perturbation > 0
        if not self.axis:
            return ids.dose, ids.time
        mean = (ids.dose * real).sum(1) / real.sum(1).clamp_min(1)
        return ids.dose / mean.clamp_min(1e-12)[:, None], mean.log1p()

    def of(self, perturbation: Int[Tensor, "b k"], dose: Float[Tensor, "b k"]) -> tuple[Int[Tensor, "b"], Bool[Tensor, "b"]]:
        """Which course each condition is on, and whether there is one."""
        width = max(perturbation.shape[1], self.parts.shape[1])
        perturbation, parts = (nn.functional.pad(value, (0, width - value.shape[1])) for value in (perturbation, self.parts))
        dose, doses = (nn.functional.pad(value, (0, width - value.shape[1])) for value in (dose, self.dose))
        same = (perturbation[:, None] == parts).all(-1)
        same &= ((dose[:, None] - doses).abs() <= _SAME_DOSE * doses.abs() + 1e-12).all(-1)
        if not same.shape[1]:
            return perturbation.new_zeros(len(perturbation)), same.any(1)
        return same.int().argmax(1), same.any(1)


class CourseEncoder(ConditionEncoder):
    """A set encoder of perturbations that knows how their effects grew; time (or dose) is read as an interval and not otherwise.

    Parameters
    ----------
    courses
        What was measured; kept with the weights.
    history_dropout
        Probability in training that an earlier point of a course is hidden: what comes next is learnt over intervals of all lengths.
        The point that is asked for is hidden at least as often as `ANSWER_DROPOUT`.
    features, trained, n_levels, options
        See `ConditionEncoder`.
    """

    def __init__(
        self,
        features: Tensor,
        trained: Tensor,
        n_levels: tuple[int, ...] = (),
        *,
        courses: Courses,
        history_dropout: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(features, trained, n_levels, **options)
        self.history_dropout = history_dropout
        self.course_unit: Tensor
        self.course_scale: Tensor
        for name, value in courses._asdict().items():
            self.register_buffer(f"course_{name}", value)
        self.course = Relaxation(courses.effect.shape[-1], self.width, self.width)
        points = courses.at[courses.at > 0]
        self.register_buffer("course_unit", points.median() if len(points) else torch.tensor(1.0))
        size = courses.effect[courses.at >= 0]
        self.register_buffer("course_scale", size.square().mean().sqrt().clamp_min(1e-6) if len(size) else torch.tensor(1.0))

    @property
    def courses(self) -> Courses:
        """What was measured."""
        return Courses(*(getattr(self, f"course_{name}") for name in Courses._fields))

    def forward(
        self,
        ids: ConditionIds,
        drop: Bool[Tensor, "b"] | None = None,
        generator: torch.Generator | None = None,
        own: Int[Tensor, "o"] | None = None,
    ) -> Condition:
        """As `ConditionEncoder.forward`, with the course as a further token and in the pooled vector."""
        dose, until = self.courses.place(ids)
        if self.courses.axis:
            condition = super().forward(ids._replace(dose=dose), drop, generator, own)
        else:
            condition = super().forward(ids._replace(time=torch.zeros_like(ids.time)), drop, generator, own)
        row, exists = self.courses.of(ids.perturbation, dose)
        at, effect = self.courses.at, self.courses.effect
        if not len(at):
            at, effect = at.new_full((1, 1), _NOWHERE), effect.new_zeros(1, 1, effect.shape[-1])
        at, effect = at[row], effect[row]
        known = exists[:, None] & (at >= 0) & (at <= until[:, None] * (1 + _EQUAL))
        if drop is not None:
            known &= ~drop[:, None]
        if generator is not None and self.history_dropout:
            hidden = torch.rand(at.shape, generator=generator).to(at.device)
            answer = at >= until[:, None] * (1 - _EQUAL)
            known &= hidden >= torch.where(answer, max(self.history_dropout, ANSWER_DROPOUT), self.history_dropout)
        if own is not None:
            at, effect, known, until = at[own], effect[own], known[own], until[own]
        seen, times = effect / self.course_scale, torch.where(known, at, 0.0) / self.course_unit
        state = self.course(seen, times, known, until / self.course_unit, condition.pooled)
        tokens = torch.cat([condition.tokens[:, :COURSE], state[:, None], condition.tokens[:, COURSE:]], dim=1)
        mask = torch.cat([condition.mask[:, :COURSE], condition.mask.new_ones(len(state), 1), condition.mask[:, COURSE:]], dim=1)
        return Condition(condition.pooled + state, tokens, mask)
