"""Names of perturbations and covariate levels <-> integers. Frozen once a model exists; JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterflow.types import ConditionIds, ConditionSpec

UNKNOWN = 1  # entity id of a perturbation without identity or features; 0 is padding


@dataclass(frozen=True)
class Vocabulary:
    """Entities are numbered from 2 (0 = padding, 1 = unknown), covariate levels from 1 (0 = null).

    `seen` entities were measured in training; the rest of `entities` are known by their features only.
    """

    entities: tuple[str, ...]
    seen: frozenset[str]
    covariates: Mapping[str, tuple[str, ...]]  # covariate -> levels
    perturbed_levels: Mapping[str, frozenset[str]]  # levels that met a perturbation in training; the others are read as null
    measured: frozenset[tuple[ConditionSpec, tuple[str, ...]]]  # conditions, each with the level of match_keys it was measured in

    def ids(self, specs: Sequence[ConditionSpec], covariates: Mapping[str, Sequence[str]]) -> ConditionIds:
        """Integers for one condition and one covariate level per row. Unlisted entities become UNKNOWN: check `unknown` first."""
        width = max(1, *(len(spec.parts) for spec in specs)) if specs else 1
        number = {name: i for i, name in enumerate(self.entities, start=UNKNOWN + 1)}
        perturbation = torch.zeros(len(specs), width, dtype=torch.long)
        dose = torch.zeros(len(specs), width)
        for row, spec in enumerate(specs):
            for column, (part, amount) in enumerate(zip(spec.parts, spec.doses, strict=True)):
                perturbation[row, column] = number.get(part, UNKNOWN)
                dose[row, column] = amount
        time = torch.tensor([spec.time for spec in specs], dtype=torch.float32)
        return ConditionIds(perturbation, dose, time, self.levels(covariates, len(specs)))

    def levels(self, covariates: Mapping[str, Sequence[str]] | pd.DataFrame, rows: int) -> Tensor:
        """Covariate levels as integers (rows x M); 0 for those that met no perturbation in training."""
        columns = []
        for key, levels in self.covariates.items():
            code = {name: i if name in self.perturbed_levels[key] else 0 for i, name in enumerate(levels, start=1)}
            level, names = pd.factorize(np.asarray(covariates[key], dtype=object), use_na_sentinel=False)
            columns.append(torch.from_numpy(np.array([code.get(str(name), 0) for name in names], dtype=np.int64)[level]))
        return torch.stack(columns, dim=1) if columns else torch.zeros(rows, 0, dtype=torch.long)

    @property
    def conditions(self) -> frozenset[ConditionSpec]:
        """Measured in training, in any context."""
        return frozenset(spec for spec, _ in self.measured)

    @property
    def perturbed_contexts(self) -> frozenset[tuple[str, ...]]:
        """Levels of match_keys that met a perturbation in training."""
        return frozenset(context for spec, context in self.measured if spec.parts)

    @property
    def generalises(self) -> bool:
        """Whether there are entities known by their features only."""
        return len(self.entities) > len(self.seen)

    def unknown(self, spec: ConditionSpec) -> list[str]:
        """Parts of a condition that the model knows nothing about."""
        return [part for part in spec.parts if part not in self.entities]

    def support(self, spec: ConditionSpec) -> str:
        """How far training carries a condition: ``seen``, ``components-seen``, ``features-only`` or ``unknown``."""
        if not spec.parts or spec in self.conditions:
            return "seen"
        if self.unknown(spec):
            return "unknown"
        return "components-seen" if all(part in self.seen for part in spec.parts) else "features-only"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "entities": list(self.entities),
            "seen": sorted(self.seen),
            "covariates": {key: list(levels) for key, levels in self.covariates.items()},
            "perturbed_levels": {key: sorted(levels) for key, levels in self.perturbed_levels.items()},
            "measured": [[list(spec.parts), list(spec.doses), spec.time, list(context)] for spec, context in sorted(self.measured)],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`."""
        return cls(
            entities=tuple(values["entities"]),
            seen=frozenset(values["seen"]),
            covariates={key: tuple(levels) for key, levels in values["covariates"].items()},
            perturbed_levels={key: frozenset(levels) for key, levels in values["perturbed_levels"].items()},
            measured=frozenset(
                (ConditionSpec(tuple(p), tuple(map(float, d)), float(t)), tuple(context)) for p, d, t, context in values["measured"]
            ),
        )
