"""Whether a run comes out again: the bits of what was fitted, else a few predictions, and what may explain a difference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from counterflow.errors import ConfigError
from counterflow.run import differences

if TYPE_CHECKING:
    from pandas import DataFrame

    from counterflow.model import CounterFlow
    from counterflow.types import ConditionSpec

TOLERANCE = 0.01
"""Largest difference of a gene's mean log expression under one condition that counts as the same; effects are tenths and more."""
_CONDITIONS, _CELLS = 3, 16

Verdict = Literal["identical", "within tolerance", "different"]


@dataclass(frozen=True)
class Sample:
    """Cells that a model draws for a few conditions: a hash of all of their expression, and its mean per condition (genes)."""

    sha256: str
    means: dict[str, list[float]]

    @classmethod
    def draw(cls, model: CounterFlow, specs: Sequence[ConditionSpec] = (), *, given: bool = False) -> Sample:
        """From the control cells that the model keeps or, with `given`, those of its data; of its own conditions unless told which."""
        table = _table(model, specs or some_conditions(model))
        cells = model.predict(None, table, n_cells=_CELLS) if given else model.generate(table, _CELLS)
        expression = np.asarray(cells.layers["mean"], dtype=np.float32)
        names = cells.obs["condition"].astype(str).to_numpy()
        means = {name: expression[names == name].mean(0).astype(float).round(6).tolist() for name in dict.fromkeys(names)}
        return cls(hashlib.sha256(np.ascontiguousarray(expression).tobytes()).hexdigest(), means)

    def distance(self, other: Sample) -> float:
        """The largest difference of a gene's mean; infinite where conditions or genes are not the same."""
        if self.means.keys() != other.means.keys():
            return float("inf")
        pairs = [(np.array(values), np.array(other.means[name])) for name, values in self.means.items()]
        return max((float(np.abs(a - b).max()) if a.shape == b.shape else float("inf") for a, b in pairs), default=float("inf"))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Sample:
        """What `vars` of a sample gives; anything else is refused."""
        try:
            means = {str(name): [float(value) for value in values] for name, values in content["means"].items()}
            return cls(str(content["sha256"]), means)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError("sample.json is damaged: refit instead (leave out --sample)") from None


@dataclass(frozen=True)
class Outcome:
    """What a replay showed."""

    verdict: Verdict
    distance: float
    reasons: tuple[str, ...]


def some_conditions(model: CounterFlow, other: CounterFlow | None = None) -> list[ConditionSpec]:
    """A few of the conditions that a model (or both of two) was trained on."""
    known = {spec for spec in model.vocabulary.conditions if spec.parts}
    specs = sorted(known if other is None else known & set(other.vocabulary.conditions))
    return [specs[i] for i in np.unique(np.linspace(0, len(specs) - 1, _CONDITIONS).astype(int))] if specs else []


def _table(model: CounterFlow, specs: Sequence[ConditionSpec]) -> DataFrame:
    import pandas as pd

    setup = model.setup
    table = pd.DataFrame({setup.perturbation_key: [setup.delimiter.join(spec.parts) for spec in specs]})
    if setup.dose_key is not None:
        table[setup.dose_key] = [setup.delimiter.join(f"{dose:g}" for dose in spec.doses) for spec in specs]
    if setup.time_key is not None:
        table[setup.time_key] = [spec.time for spec in specs]
    return table


def compare_models(before: CounterFlow, now: CounterFlow, reasons: Sequence[str], tolerance: float) -> Outcome:
    """Two fits of one run, both able to predict from the same cells."""
    if _same_parts(before, now):
        return Outcome("identical", 0.0, tuple(reasons))
    specs = some_conditions(before, now)
    if not specs or before.genes != now.genes:
        return Outcome("different", float("inf"), tuple(reasons))
    distance = Sample.draw(before, specs, given=True).distance(Sample.draw(now, specs, given=True))
    return Outcome("within tolerance" if distance <= tolerance else "different", distance, tuple(reasons))


def compare_samples(before: Sample, now: Sample, reasons: Sequence[str], tolerance: float) -> Outcome:
    """What a model drew when it was fitted, and now."""
    if before.sha256 == now.sha256:
        return Outcome("identical", 0.0, tuple(reasons))
    distance = before.distance(now)
    return Outcome("within tolerance" if distance <= tolerance else "different", distance, tuple(reasons))


def _same_parts(a: CounterFlow, b: CounterFlow) -> bool:
    parts = [
        {(stage, name): np.asarray(value) for stage, named in model.fitted_parts().items() for name, value in named.items()}
        for model in (a, b)
    ]
    same_names = parts[0].keys() == parts[1].keys()
    return same_names and all(value.tobytes() == parts[1][name].tobytes() for name, value in parts[0].items())


WATCHED = "train.logger"  # an option on which no result depends


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two run.json say differently of what a result depends on."""
    found = []
    if "data" in now and before["data"].get("sha256") != now["data"].get("sha256"):
        found.append(f"data: {before['data'].get('path')} then, {now['data'].get('path')} now, with other cells, genes, labels or counts")
    if "split_hash" in now and before.get("split_hash") != now["split_hash"]:
        found.append("split: other conditions are held out")
    if isinstance(now.get("config"), dict) and isinstance(before.get("config"), dict):
        ours = ("out", "data", "split", "held_out")  # where things lie; what they hold is in the lines above
        changed = [name for name in differences(before["config"], now["config"]) if name.split(".")[0] not in ours and name != WATCHED]
        found += [f"options: {', '.join(changed)}"] if changed else []
    for name in sorted(before["versions"].keys() | now["versions"].keys()):
        then, here = (facts["versions"].get(name, "not installed") for facts in (before, now))
        found += [f"version: {name} {then} then, {here} now"] if then != here else []
    for name in ("device", "threads"):
        if before.get(name) != now.get(name):
            found.append(f"{name}: {before.get(name)} then, {now.get(name)} now")
    return found
