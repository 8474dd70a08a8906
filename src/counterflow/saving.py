"""A model as the plain parts that `checkpoint` writes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from counterflow import checkpoint, soundness, spaces
from counterflow.backbones import reads_courses
from counterflow.bounded import no_larger_than
from counterflow.conditions.courses import Courses
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.ledger import Ledger
from counterflow.data.schema import Setup
from counterflow.data.screen import condition_label
from counterflow.effects.intervals import Intervals
from counterflow.errors import CheckpointError, CounterflowError
from counterflow.grouping import Grouping
from counterflow.recentring import Recentring, Trust
from counterflow.reference import Reference

if TYPE_CHECKING:
    from counterflow.model import CounterFlow

_OF_ODD_VALUES = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_READY_MODULE = "<nn.Module>"  # what the file says of a backbone that only the caller can rebuild


def save(model: CounterFlow, path: Path, *, overwrite: bool) -> None:
    """Write `model` to the directory `path`."""
    from counterflow import __version__

    backbone = model.config["backbone"]
    manifest: dict[str, Any] = {
        "package_version": __version__,
        "config": {**model.config, "backbone": backbone if isinstance(backbone, str) else _READY_MODULE},
        "setup": model.setup.to_dict(),
        "genes": list(model.genes),
        "vocabulary": model.vocabulary.to_dict(),
        "reference": model.reference.to_dict(),
        "training": {
            "history": model.history[-1:],
            "conditions": sorted(condition_label(spec, model.setup) for spec in model.vocabulary.conditions if spec.parts),
            **model.trained_on,
            "on_target": [[one.perturbation, one.effect, one.error] for one in model.on_target()],
        },
        "rule": None,
        "trust": {kind: [trust.mean, trust.spread, trust.n] for kind, trust in model.trust.items()},
        "intervals": None,
        "ledger": None,
    }
    arrays = {"features": model.features, **model.reference.to_arrays()}
    if model.rule is not None:
        manifest["rule"], measured = model.rule.to_parts()
        arrays |= measured
    if model.intervals is not None:
        manifest["intervals"], learnt = model.intervals.to_parts()
        arrays |= learnt
    if model.ledger is not None:
        manifest["ledger"], seen = model.ledger.to_parts()
        arrays |= seen
    weights = {f"module.{name}": value for name, value in model.module.state_dict().items()}
    weights |= {f"space.{name}": value for name, value in _space_module(model).state_dict().items()}
    checkpoint.write(path, manifest, weights, arrays, overwrite=overwrite)


def fitted_parts(model: CounterFlow) -> dict[str, dict[str, np.ndarray]]:
    """Everything that was learnt, by stage and name."""
    parts: dict[str, dict[str, np.ndarray]] = {
        "genes": {"names": np.array(model.genes)},
        "features": {"names": np.array(model.vocabulary.entities), "values": model.features},
        "space": {name: value.cpu().numpy() for name, value in _space_module(model).state_dict().items()},
        "weights": {name: value.cpu().numpy() for name, value in model.module.state_dict().items()},
        "recipe": {kind: np.array([trust.mean, trust.spread]) for kind, trust in model.trust.items()},
        "reference": model.reference.to_arrays(),
    }
    if model.rule is not None:
        parts["rule"] = model.rule.to_parts()[1]
    if model.intervals is not None:
        described, learnt = model.intervals.to_parts()
        parts["recipe"] |= learnt | {f"intervals.{kind}": np.array(one["weights"]) for kind, one in described["kinds"].items()}
    return parts


def _space_module(model: CounterFlow) -> nn.Module:
    assert isinstance(model.space, nn.Module)
    return model.space


def load(cls: type[CounterFlow], path: Path, backbone: nn.Module | None, trust_packages: Sequence[str]) -> CounterFlow:
    """Rebuild a model from the directory `path`."""
    manifest, weights, arrays = checkpoint.read(path)
    config: dict[str, Any] = manifest["config"]
    for problem in soundness.config_problems(config):
        raise CheckpointError(f"the model in {str(path)!r} is not what counterflow writes: {problem}")
    name = config["backbone"]
    if backbone is not None:
        config["backbone"] = backbone
    elif name == _READY_MODULE:
        raise CheckpointError("this model was built around an nn.Module of yours: give it to load(..., backbone=MyNet(...))")
    elif ":" in name and name.split(":")[0].split(".")[0] not in trust_packages:
        package = name.split(":")[0].split(".")[0]
        raise CheckpointError(f"this model needs the code {name!r}: if you trust it, load(..., trust_packages=[{package!r}])")
    try:
        model = _rebuild(cls, manifest, config, weights, arrays)
        soundness.check(model)
    except CheckpointError as error:
        raise CheckpointError(f"the model in {str(path)!r} cannot be used: {error}") from error
    except (CounterflowError, *_OF_ODD_VALUES) as error:
        raise CheckpointError(f"the model in {str(path)!r} does not fit this version of counterflow: {error}") from error
    return model


def _rebuild(
    cls: type[CounterFlow], manifest: dict[str, Any], config: dict[str, Any], weights: dict[str, Tensor], arrays: dict[str, np.ndarray]
) -> CounterFlow:
    options = {key: value for key, value in config.items() if value is not None}
    model = cls(None, **options)
    model.setup = Setup.from_dict(manifest["setup"])
    model.genes = tuple(manifest["genes"])
    model.vocabulary = Vocabulary.from_dict(manifest["vocabulary"])
    model.features = arrays["features"]
    with no_larger_than(weights):
        model.space = spaces.build(config["space"], len(model.genes), **config["space_kwargs"])
    model.reference = Reference.from_saved(manifest["reference"], arrays, len(model.genes))
    model.rule = None if manifest["rule"] is None else Recentring.from_parts(manifest["rule"], arrays)
    model.trust = {str(kind): Trust(float(mean), float(spread), int(n)) for kind, (mean, spread, n) in manifest["trust"].items()}
    model.intervals = None if manifest["intervals"] is None else Intervals.from_parts(manifest["intervals"], arrays)
    model.ledger = None if manifest["ledger"] is None else Ledger.from_parts(manifest["ledger"], arrays)
    model.trained_on = {key: value for key, value in manifest["training"].items() if key not in ("history", "conditions", "on_target")}
    model.history = manifest["training"]["history"]
    model.grouping = Grouping.stored(config, weights, int(np.prod(model.space.state_shape)))
    if reads_courses(config["backbone"]):
        model.courses = Courses.stored(weights, "module.encoder.course_")
    with no_larger_than(weights):
        model.module = model.build_module(model.grouping, model.vocabulary.seen)
    _fill(model.module, weights, "module.")
    _fill(_space_module(model), weights, "space.")
    model.is_trained = True
    return model


def _fill(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    expected = module.state_dict()
    missing, extra = sorted(set(expected) - set(own)), sorted(set(own) - set(expected))
    wrong = sorted(name for name in set(own) & set(expected) if own[name].shape != expected[name].shape)
    if missing or extra or wrong:
        raise CheckpointError(f"the weights do not fit the model: missing {missing}, unexpected {extra}, other shape {wrong}")
    for name, value in own.items():
        for problem in soundness.weights_problems(name, value, expected[name]):
            raise CheckpointError(f"the weights do not fit the model: {problem}")
    module.load_state_dict(own)
    module.eval()
