"""Where a perturbation enters the network: condition ids -> one pooled vector and a set of tokens.

Elements {(entity, dose)} are embedded one by one and pooled as a set, so a combination of any size is the set of its parts and
their order cannot matter. The *control* is the empty set, a real condition with a vector of its own; the *null* ("unknown", for
classifier-free guidance) is another. Covariates and real time make one context token, which is always present.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from counterflow.conditions.vocabulary import UNKNOWN
from counterflow.types import Condition, ConditionIds

Pool = Literal["sum", "mean", "attention"]
N_CURVE = 4  # numbers that describe a dose or a time to the network


def curve_features(amount: Tensor) -> Tensor:
    """A non-negative amount (dose, hours) as smooth saturating features, all 0 at amount 0: [...] -> [..., N_CURVE]."""
    return torch.stack([amount.log1p(), amount / (1 + amount), amount / (10 + amount), amount / (0.1 + amount)], dim=-1)


class ConditionEncoder(nn.Module):
    """Set encoder of perturbations.

    Parameters
    ----------
    features
        One row per entity of the vocabulary (n_entities x F); rows of NaN have none: they read the mean row and a missing flag.
    trained
        True for entities seen in training: only these have a learned identity.
    n_levels
        Number of levels of each covariate.
    width
        C, the width of pooled vector and tokens.
    pool
        How element tokens become one vector; ``sum`` is the prior that combinations add up.
    feature_dropout
        Probability in training that an element's identity is hidden, so that features alone learn to carry it.
    """

    def __init__(
        self,
        features: Tensor,
        trained: Tensor,
        n_levels: tuple[int, ...] = (),
        *,
        width: int = 128,
        pool: Pool = "sum",
        feature_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width, self.pool, self.feature_dropout = width, pool, feature_dropout
        missing = features.isnan().any(1)
        known = features[~missing]
        mean = known.mean(0) if len(known) else torch.zeros(features.shape[1])
        filled = torch.where(missing[:, None], mean, features)
        table = torch.cat([filled, missing[:, None].float()], dim=1)
        unknown = torch.cat([mean, torch.ones(1)])
        self.features: Tensor
        self.trained: Tensor
        self.register_buffer("features", torch.cat([torch.zeros_like(unknown)[None], unknown[None], table]))  # padding, unknown, entities
        self.register_buffer("trained", torch.cat([torch.zeros(UNKNOWN + 1, dtype=torch.bool), trained]))
        self.identity = nn.Embedding(len(self.features), width, padding_idx=0)
        self.element = nn.Sequential(nn.Linear(self.features.shape[1] + width + N_CURVE, width), nn.SiLU(), nn.Linear(width, width))
        self.context = nn.Linear(N_CURVE, width)
        self.levels = nn.ModuleList(nn.Embedding(n + 1, width) for n in n_levels)
        self.control = nn.Parameter(torch.randn(width))
        self.null = nn.Parameter(torch.randn(width))
        self.query = nn.Linear(width, 1) if pool == "attention" else None

    def forward(
        self,
        ids: ConditionIds,
        drop: Bool[Tensor, "b"] | None = None,
        generator: torch.Generator | None = None,
        own: Int[Tensor, "o"] | None = None,
    ) -> Condition:
        """Encode `ids`; rows where `drop` is True get the null instead of their perturbation (the context stays).

        With a `generator` (training) identities are hidden at random with probability `feature_dropout`. With `own`, only these rows are
        encoded, while random numbers are drawn for all.
        """
        show = self._shown(ids, generator)
        if own is not None:
            ids, show, drop = ConditionIds(*(column[own] for column in ids)), show[own], None if drop is None else drop[own]
        real = ids.perturbation > 0  # [B, K]
        tokens = self._elements(ids, show)
        special = self.control.expand(len(real), -1)
        empty = ~real.any(1)
        if drop is not None:
            special = torch.where(drop[:, None], self.null, special)
            empty, real = empty | drop, real & ~drop[:, None]
        first = torch.where(empty[:, None], special, tokens[:, 0])
        tokens = torch.cat([first[:, None], tokens[:, 1:]], dim=1)
        mask = torch.cat([(real[:, 0] | empty)[:, None], real[:, 1:]], dim=1)
        context = self._context(ids)
        pooled = context + self._pool(tokens, mask)
        everywhere = mask.new_ones(len(mask), 1)
        return Condition(pooled, torch.cat([context[:, None], tokens], dim=1), torch.cat([everywhere, mask], dim=1))

    def _shown(self, ids: ConditionIds, generator: torch.Generator | None) -> Tensor:
        """Which elements show their identity."""
        show = self.trained[ids.perturbation]
        if generator is not None and self.feature_dropout:
            hide = torch.rand(ids.perturbation.shape, generator=generator) < self.feature_dropout
            show = show & ~hide.to(show.device)
        return show

    def _elements(self, ids: ConditionIds, show: Tensor) -> Tensor:
        identity = self.identity(ids.perturbation) * show[..., None]
        return self.element(torch.cat([self.features[ids.perturbation], identity, curve_features(ids.dose)], dim=-1))

    def _context(self, ids: ConditionIds) -> Tensor:
        context = self.context(curve_features(ids.time))
        for column, table in enumerate(self.levels):
            context = context + table(ids.covariates[:, column])
        return context

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.query is not None:
            weight = self.query(tokens).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(1)
            return torch.einsum("bk,bkc->bc", weight, tokens)
        total = (tokens * mask[..., None]).sum(1)
        return total / mask.sum(1, keepdim=True) if self.pool == "mean" else total
