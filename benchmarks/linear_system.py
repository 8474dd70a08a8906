"""Cells that follow a linear differential equation whose solution is known: what `dynamics` says of times that were not measured.

    dx/dt = K (x - x_p),    x(0) ~ N(0, 1/4²),    so that the mean effect is  (1 - exp(K t)) x_p

K is stable with real eigenvalues between -2 and -0.3 and is not diagonal; every perturbation p has an end point x_p. Shared by
`benchmarks/dynamics.py` and the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from counterflow.backbones import build
from counterflow.conditions.courses import CourseEncoder, Courses
from counterflow.conditions.encoder import ConditionEncoder
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.flow.solvers import midpoint
from counterflow.module import FlowModule
from counterflow.types import Batch, ConditionIds, ConditionSpec

S, P = 6, 4  # features, perturbations
SPREAD = 0.25  # of the cells: their minibatch means are noisy, and with a wide spread that noise is all there is to see
MEASURED = (0.25, 0.5, 1.0, 2.0, 4.0)
ASKED = (0.75, 1.5, 3.0)
WIDTH = 64


class LinearSystem:
    """The equation, drawn from `seed`."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(S, S, generator=generator, dtype=torch.float64) + 2 * torch.eye(S, dtype=torch.float64)
        self.matrix = basis @ torch.diag(-torch.linspace(0.3, 2.0, S, dtype=torch.float64)) @ torch.linalg.inv(basis)
        self.ends = torch.randn(P, S, generator=generator, dtype=torch.float64)
        names = tuple(f"P{p}" for p in range(P))
        conditions = frozenset((ConditionSpec((name,), (1.0,), time), ()) for name in names for time in MEASURED)
        self.vocabulary = Vocabulary(names, frozenset(names), {}, {}, conditions)

    def effect(self, p: int, time: float) -> Tensor:
        """True mean effect (S)."""
        return (self.ends[p] - torch.linalg.matrix_exp(self.matrix * time) @ self.ends[p]).float()

    def ids(self, p: int, time: float, n: int = 1) -> ConditionIds:
        """What a network is asked."""
        return self.vocabulary.ids([ConditionSpec((f"P{p}",), (1.0,), time)] * n, {})

    def batch(self, n_sets: int, set_size: int, generator: torch.Generator) -> Batch:
        """Fresh cells at measured times, and at time 0."""
        times = (0.0, *MEASURED)
        drawn = torch.randint(P * len(times), (n_sets,), generator=generator).tolist()
        what = [(i // len(times), times[i % len(times)]) for i in drawn]
        control, start = (SPREAD * torch.randn(2, n_sets * set_size, S, generator=generator)).unbind()
        target = start + torch.stack([self.effect(*one) for one in what]).repeat_interleave(set_size, 0)
        ids = [self.ids(*one, n=set_size) for one in what]
        together = ConditionIds(*(torch.cat(column) for column in zip(*ids, strict=True)))
        group = torch.arange(n_sets).repeat_interleave(set_size)
        return Batch(target, control, together, group, torch.ones(len(target)))


def fit(system: LinearSystem, backbone: str, *, steps: int = 1500, lr: float = 3e-3, seed: int = 0) -> FlowModule:
    """A flow on cells of the measured times; the courses hold the means of 500 cells each."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    features, trained = torch.zeros(P, 0), torch.ones(P, dtype=torch.bool)
    encoder = ConditionEncoder(features, trained, width=WIDTH)
    if backbone == "dynamics":
        specs = sorted(spec for spec, _ in system.vocabulary.measured)
        means = torch.stack([system.effect(int(spec.parts[0][1:]), spec.time) for spec in specs])
        noise = SPREAD * torch.randn(means.shape, generator=generator) / 500**0.5
        encoder = CourseEncoder(features, trained, width=WIDTH, courses=Courses.measured(specs, means + noise, system.vocabulary, "time"))
    network = build(backbone, (S,), WIDTH, width=64, depth=2)
    module = FlowModule(network, encoder, (S,), coupling="ot", condition_dropout=0.0).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        module.loss(system.batch(4, 64, generator), generator).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def error(system: LinearSystem, module: FlowModule, p: int, time: float, n: int = 2000) -> float:
    """Distance of the predicted mean effect from the true one, relative to the true one."""
    cells = SPREAD * torch.randn(n, S, generator=torch.Generator().manual_seed(1))
    after = midpoint(module.velocity(system.ids(p, time)), cells, torch.linspace(0, 1, 11))
    true = system.effect(p, time)
    return float(((after - cells).mean(0) - true).norm() / true.norm())
