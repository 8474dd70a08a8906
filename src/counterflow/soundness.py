"""What a model read from files must be before anything is computed with it: every check that a later crash would come too late for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.matrix import structure_problem
from counterflow.data.schema import MATRIX_STATES, Setup
from counterflow.effects.intervals import N_TERMS, Intervals
from counterflow.errors import CheckpointError
from counterflow.recentring import Recentring, Trust
from counterflow.reference import Reference

if TYPE_CHECKING:
    from counterflow.model import CounterFlow

_TEXTS = ("backbone", "space", "source", "coupling", "prediction", "conditioning", "anchor", "time")  # options of a model that are names
_MOST_LOG_COUNTS = 30.0  # exp(30) counts per cell do not exist


def check(model: CounterFlow) -> None:
    """Raise CheckpointError for the first part that is not what `saving` writes."""
    for problem in _problems(model):
        raise CheckpointError(f"it is not what counterflow writes: {problem}")


def _problems(model: CounterFlow) -> Iterator[str]:
    yield from _setup_problems(model.setup)
    if not model.genes or not _names(model.genes, distinct=True):
        yield "genes are not distinct names"
    yield from _vocabulary_problems(model.vocabulary, model.setup)
    n = len(model.vocabulary.entities)
    if not _numbers(model.features, (n, None), np.float32, finite=False):
        yield f"features are not a table of {n} rows"
    yield from _reference_problems(model.reference, model.setup, len(model.genes))
    if model.rule is not None:
        yield from _rule_problems(model.rule, int(np.prod(model.space.state_shape)), len(model.genes))
    yield from _trust_problems(model.trust)
    if model.intervals is not None:
        yield from _interval_problems(model.intervals, len(model.genes))


def config_problems(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the options of a model, before anything is built with them."""
    for name in _TEXTS:
        if not isinstance(config.get(name), str):
            yield f"{name} is {config.get(name)!r}, not a name"
    for name in ("backbone_kwargs", "space_kwargs", "encoder_kwargs"):
        if not isinstance(config.get(name), dict):
            yield f"{name} is {config.get(name)!r}, not an object"
    for name in ("seed", "keep_controls"):
        if type(config.get(name)) is not int:
            yield f"{name} is {config.get(name)!r}, not a whole number"
    if type(config.get("condition_dropout")) not in (int, float) or not 0 <= config["condition_dropout"] <= 1:
        yield f"condition_dropout is {config.get('condition_dropout')!r}"
    if not isinstance(config.get("objective", "flow"), str):
        yield f"objective is {config.get('objective')!r}, not a name"
    if type(config.get("mmd_weight", 0.0)) not in (int, float) or not 0 <= config.get("mmd_weight", 0.0) < float("inf"):
        yield f"mmd_weight is {config.get('mmd_weight')!r}"


def weights_problems(name: str, own: Tensor, expected: Tensor) -> Iterator[str]:
    """What is wrong with one tensor of the file, given the one it is to replace."""
    if own.dtype != expected.dtype:
        yield f"{name} holds {own.dtype}, not {expected.dtype}"
    elif own.is_floating_point() and own.isnan().any():
        yield f"{name} holds values that are no numbers"
    elif name.endswith("order") and not own.is_floating_point() and not own.sort().values.equal(expected.sort().values):
        yield f"{name} is not an order of the features"


def _setup_problems(setup: Setup) -> Iterator[str]:
    for option in fields(Setup):
        value, default = getattr(setup, option.name), option.default
        if isinstance(default, tuple):
            good = _names(value, distinct=True)
        elif isinstance(default, bool):
            good = isinstance(value, bool)
        else:
            good = isinstance(value, str) or (value is None and default is None)
        if not good:
            yield f"{option.name} of the declaration is {value!r}"
    if setup.matrix_state not in MATRIX_STATES:
        yield f"matrix_state is {setup.matrix_state!r}"
    if not setup.delimiter:
        yield "the delimiter is empty"


def _vocabulary_problems(vocabulary: Vocabulary, setup: Setup) -> Iterator[str]:
    known = set(vocabulary.entities)
    if not _names(vocabulary.entities, distinct=True) or not vocabulary.seen <= known:
        yield "perturbations are not distinct names that hold the seen ones"
    levels = vocabulary.covariates
    if set(levels) != set(setup.covariate_keys) or set(vocabulary.perturbed_levels) != set(levels):
        yield "covariates are not those of the declaration"
    elif not all(_names(names, distinct=True) and vocabulary.perturbed_levels[key] <= set(names) for key, names in levels.items()):
        yield "levels of the covariates are not distinct names"
    for spec, context in vocabulary.measured:
        doses = np.array([*spec.doses, spec.time])
        if len(spec.parts) != len(spec.doses) or not _names(spec.parts) or not np.isfinite(doses).all() or (doses < 0).any():
            yield f"a measured condition is {spec!r}"
        if len(context) != len(setup.match_keys) or not _names(context):
            yield f"a measured context is {context!r}"


def _reference_problems(reference: Reference, setup: Setup, n_genes: int) -> Iterator[str]:
    counts, n = reference.counts, len(reference.obs)
    if counts.shape != (n, n_genes) or structure_problem(counts) or not _numbers(counts.data, (None,), np.float32):
        yield "the kept controls are a damaged matrix"
    elif (counts.data < 0).any() or not counts.has_sorted_indices:
        yield "the kept controls are not counts"
    if not _numbers(reference.library, (n,), np.float32) or (reference.library < 0).any():
        yield "library sizes of the kept controls are not numbers"
    if not _names(list(reference.obs.index)) or set(reference.obs.columns) != {*setup.covariate_keys, *setup.match_keys}:
        yield "the columns of the kept controls are not those of the declaration"
    elif not all(_names(list(reference.obs[key])) for key in reference.obs):
        yield "the columns of the kept controls are not text"
    for level, moments in reference.log_library.items():
        good = _names(level) and len(level) == len(setup.match_keys) and all(type(value) in (int, float) for value in moments)
        if not good or not np.isfinite(moments).all() or moments[1] < 0 or moments[0] > _MOST_LOG_COUNTS:
            yield f"the library size of the context {level!r} is {moments!r}"
    if setup.match_keys and not _levels(reference, setup) <= set(reference.log_library):
        yield "kept controls are of contexts without a library size"


def _levels(reference: Reference, setup: Setup) -> set[tuple[str, ...]]:
    """The contexts of the kept controls."""
    if not set(setup.match_keys) <= set(reference.obs.columns):
        return set()
    return set(reference.obs[list(setup.match_keys)].itertuples(index=False, name=None))


def _rule_problems(rule: Recentring, n_state: int, n_genes: int) -> Iterator[str]:
    for name, part, width in (("states", rule.states, n_state), ("genes", rule.genes, n_genes)):
        m = part.measured
        units, contexts = len(m.spec_of), len(m.levels)
        if not all(_numbers(values, (units, width), np.float32) for values in (m.effect, m.noise)) or (m.noise < 0).any():
            yield f"measured effects on {name} are not a table of {units} x {width} numbers"
        if not _numbers(m.control, (contexts, width), np.float32):
            yield f"control means of {name} are not a table of {contexts} x {width} numbers"
    m = rule.genes.measured
    everything = (set(m.spec_of.tolist()), set(m.level_of.tolist()), len(set(zip(m.spec_of.tolist(), m.level_of.tolist(), strict=True))))
    if everything[0] != set(range(len(m.specs))) or not everything[1] <= set(range(len(m.levels))) or everything[2] != len(m.spec_of):
        yield "measured effects are not numbered by condition and context"
    for spec in m.specs:
        doses = np.array([*spec.doses, spec.time], dtype=float)
        if not spec.parts or len(spec.parts) != len(spec.doses) or not _names(spec.parts) or not (doses >= 0).all():
            yield f"a condition with a measured effect is {spec!r}"
    if not all(_names(level) for level in m.levels) or len(set(m.specs)) != len(m.specs) or len(set(m.levels)) != len(m.levels):
        yield "conditions or contexts with measured effects are there twice"


def _trust_problems(trust: dict[str, Trust]) -> Iterator[str]:
    for kind, values in trust.items():
        if not all(np.isfinite(value) for value in (values.mean, values.spread)):
            yield f"the trust in {kind!r} is not two numbers"


def _interval_problems(intervals: Intervals, n_genes: int) -> Iterator[str]:
    for name, values in (("prior", intervals.prior), ("variance", intervals.variance)):
        if not _numbers(values, (n_genes,), np.float32) or (values < 0).any():
            yield f"the {name} of intervals is not a variance of {n_genes} genes"
    if not all(np.isfinite(n) and n > 0 for n in (intervals.cells, intervals.controls)):
        yield "the numbers of cells that intervals are for are not positive"
    for kind, one in intervals.kinds.items():
        weights, quantiles = np.array(one.weights), np.array(one.quantiles)
        if len(weights) != N_TERMS or not np.isfinite(weights).all() or (weights < 0).any() or one.n < 1:
            yield f"the intervals of {kind!r} have no variance"
        if not np.isfinite(quantiles).all() or (np.diff(quantiles, prepend=0.0, axis=1) < 0).any():
            yield f"the quantiles of {kind!r} do not rise"


def _names(values: Any, *, distinct: bool = False) -> bool:
    """Whether these are text, each once if asked for."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and all(isinstance(value, str) for value in values)
        and not (distinct and len(set(values)) < len(values))
    )


def _numbers(values: Any, shape: tuple[int | None, ...], kind: type, *, finite: bool = True) -> bool:
    """Whether this is an array of that kind and shape (None: any length)."""
    if not isinstance(values, np.ndarray) or values.dtype != kind or values.ndim != len(shape):
        return False
    fits = all(wanted is None or wanted == found for wanted, found in zip(shape, values.shape, strict=True))
    return fits and (not finite or bool(np.isfinite(values).all()))
