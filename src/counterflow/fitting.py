"""From a screen to training batches: fit the space, measure the additive rule, lay out the groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from counterflow.conditions.courses import Axis, Courses
from counterflow.conditions.features import check_names, feature_table
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.datamodule import Cells, Conditions, StepDataset
from counterflow.data.ledger import CellKeys, Ledger
from counterflow.data.sampler import Sampler, build_groups
from counterflow.data.schema import Setup
from counterflow.data.screen import Screen, describe
from counterflow.data.source import batches, enough, in_memory, take_rows, whole
from counterflow.data.split_file import SEPARATOR
from counterflow.effects.intervals import Intervals
from counterflow.effects.kriging import KrigedRule, MeasuredEffects
from counterflow.effects.leaving_out import LeftOut, halves, leave_out
from counterflow.effects.moments import pairs_of
from counterflow.errors import ConfigError
from counterflow.spaces.base import StateSpace, log_normalise
from counterflow.types import ConditionIds, ConditionSpec

_LOOK_UP_BYTES = 2 * 2**30  # larger states are encoded batch by batch


def vocabulary_of(screen: Screen, setup: Setup, featured: tuple[str, ...]) -> Vocabulary:
    """Names met in training; `featured` entities that were not are known by their features."""
    used = [screen.conditions[code] for code in np.unique(screen.condition)]
    seen = sorted({part for spec in used for part in spec.parts})
    perturbed = ~screen.is_control
    covariates = {key: tuple(sorted(screen.covariates[key].unique())) for key in setup.covariate_keys}
    met = {key: frozenset(screen.covariates[key][perturbed]) for key in setup.covariate_keys}
    extra = sorted(set(featured) - set(seen)) if len(set(featured) & set(seen)) >= _ENOUGH_FEATURED else []
    return Vocabulary(
        entities=(*seen, *extra),
        seen=frozenset(seen),
        covariates=covariates,
        perturbed_levels=met,
        measured=frozenset((screen.conditions[code], screen.contexts[c]) for code, c in pairs_of(screen.condition, screen.context)),
    )


_ENOUGH_FEATURED = 3  # with fewer measured entities that have features, nothing was learnt about what features mean


def fit_features(features: str | pd.DataFrame, cells: Screen, seed: int, ledger: Ledger) -> pd.DataFrame:
    """What is known of a perturbation before it was measured: handed in, or learnt from the controls among the training cells."""
    controls = cells.rows(cells.is_control)
    controls = controls.rows(enough(len(controls.cells), len(cells.genes), seed))
    if isinstance(features, pd.DataFrame):
        check_names(features, {part for code in np.unique(cells.condition) for part in cells.conditions[code].parts}, _ENOUGH_FEATURED)
    if isinstance(features, pd.DataFrame) and "fitted_on" in features.attrs:
        ledger.record("features", CellKeys.of(list(features.attrs["fitted_on"])))
    elif isinstance(features, pd.DataFrame):
        ledger.remark(
            "features", "handed in, and features.attrs['fitted_on'] (obs_names; [] for none) does not say what they were computed on"
        )
    elif features == "coexpression":
        ledger.record("features", controls.keys)
    return feature_table(features, log_normalise(whole(controls.counts), controls.library), cells.genes, seed=seed)


def fit_space(space: StateSpace, cells: Screen, seed: int, ledger: Ledger) -> None:
    """The space, learnt from training cells: all of them, or 50,000 chosen at random."""
    some = cells.rows(enough(len(cells.cells), len(cells.genes), seed))
    ledger.record("space", some.keys)
    space.fit(whole(some.counts), some.library, seed=seed)


def states_of(screen: Screen, space: StateSpace) -> Callable[[np.ndarray], Tensor]:
    """Rows -> states: a look-up when cells and states fit in memory, else encoded on demand."""
    if in_memory(screen.counts) and 4 * len(screen.cells) * int(np.prod(space.state_shape)) <= _LOOK_UP_BYTES:
        states = space.encode(whole(screen.counts), screen.library)
        return lambda rows: states[torch.from_numpy(rows)]
    return lambda rows: space.encode(screen.counts[rows], screen.library[rows])


def encoded(space: StateSpace, cells: Screen) -> np.ndarray:
    """States of all cells (n x S)."""
    if in_memory(cells.counts):
        return space.encode(whole(cells.counts), cells.library).numpy()
    states = np.empty((len(cells.cells), *space.state_shape), dtype=np.float32)
    for rows in batches(cells.counts):
        states[rows] = space.encode(cells.counts[rows], cells.library[rows]).numpy()
    return states


def exposures(space: StateSpace, cells: Screen) -> np.ndarray:
    """What the rates of each cell are multiplied with (n)."""
    if in_memory(cells.counts):
        return space.exposure(whole(cells.counts), cells.library)
    found = np.empty(len(cells.cells), dtype=np.float32)
    for rows in batches(cells.counts):
        found[rows] = space.exposure(cells.counts[rows], cells.library[rows])
    return found


def fit_rule(screen: Screen, states: Callable[[np.ndarray], Tensor], ledger: Ledger) -> KrigedRule:
    """The rule in state space, from training cells."""
    ledger.record("rule", screen.keys)
    return KrigedRule(_effects(screen, lambda rows: states(rows).numpy(), np.arange(len(screen.cells))))


def fit_gene_rule(screen: Screen, ledger: Ledger) -> KrigedRule:
    """The rule on log expression, gene by gene, from training cells."""
    ledger.record("rule", screen.keys)
    return KrigedRule(_gene_effects(screen, np.arange(len(screen.cells))), floor=0.0)


def axis_of(setup: Setup) -> Axis:
    """What courses run along: times where a screen has them, else doses."""
    if setup.time_key is None and setup.dose_key is None:
        raise ConfigError("this network reads how effects grow over time or dose: declare time_key or dose_key, or take another backbone")
    return "dose" if setup.time_key is None else "time"


def fit_courses(screen: Screen, states: Callable[[np.ndarray], Tensor], vocabulary: Vocabulary, setup: Setup, ledger: Ledger) -> Courses:
    """Mean effects in state space over time or dose, averaged over contexts by how well they are known; from training cells."""
    ledger.record("courses", screen.keys)
    measured = _effects(screen, lambda rows: states(rows).numpy(), np.arange(len(screen.cells)))
    weight = 1 / np.maximum(measured.noise.mean(1, dtype=np.float64), 1e-12)
    total, effect = np.zeros(len(measured.specs)), np.zeros((len(measured.specs), measured.effect.shape[1]))
    np.add.at(total, measured.spec_of, weight)
    np.add.at(effect, measured.spec_of, weight[:, None] * measured.effect)
    return Courses.measured(measured.specs, torch.from_numpy(effect / total[:, None]).float(), vocabulary, axis_of(setup))


def _gene_effects(screen: Screen, rows: np.ndarray) -> MeasuredEffects:
    """Effects on log expression, measured on some of the cells."""

    def expression(some: np.ndarray) -> sparse.csr_matrix:
        return log_normalise(screen.counts[rows[some]], screen.library[rows[some]])

    return _effects(screen, expression, rows)


def _effects(screen: Screen, values: Callable[[np.ndarray], np.ndarray | sparse.csr_matrix], rows: np.ndarray) -> MeasuredEffects:
    """Of some cells, group after group; of a file, in the order in which it is read best."""
    blocks = None if in_memory(screen.counts) else batches(take_rows(screen.counts, rows))
    return MeasuredEffects.measure(values, screen.conditions, screen.condition[rows], screen.contexts, screen.context[rows], blocks)


def fit_intervals(screen: Screen, measured: MeasuredEffects, seed: int, ledger: Ledger) -> Intervals:
    """How sure the rule is of effects on genes: learnt on effects that are left out in turn, and on halves of the training cells."""
    ledger.record("recipe", screen.keys)
    code, context = {spec: i for i, spec in enumerate(screen.conditions)}, {level: i for i, level in enumerate(screen.contexts)}
    n = np.zeros((len(code), len(context)))
    np.add.at(n, (screen.condition, screen.context), 1)
    at = np.array([context[level] for level in measured.levels])
    n_cells = n[[code[measured.specs[s]] for s in measured.spec_of], at[measured.level_of]]
    left_out = [*leave_out(measured), *_halves(screen, seed)]
    return Intervals.learn(measured, n_cells, n[0, at], left_out)


def _halves(screen: Screen, seed: int) -> Iterator[LeftOut]:
    """Effects on one half of the cells of each condition and context, predicted from the other half."""
    draw = np.random.default_rng([seed, 7]).permutation(len(screen.cells)).astype(np.int32)
    group = screen.condition[draw] * len(screen.contexts) + screen.context[draw]
    order = np.argsort(group, kind="stable").astype(np.int32)
    first = np.searchsorted(group[order], np.arange(group.max() + 1)).astype(np.int32)
    turn = np.arange(len(group), dtype=np.int32) - first[group[order]]  # 0, 1, 2, ... within each group
    enough = np.bincount(group, minlength=len(screen.contexts))[: len(screen.contexts)] > 1
    rows = draw[order]
    kept = enough[screen.context[rows]]
    parts = [np.sort(rows[kept & (turn % 2 == half)]) for half in (0, 1)]
    del draw, group, order, turn, rows, kept  # of millions of cells, as much as all else together
    if all((screen.condition[part] > 0).any() for part in parts):
        yield from halves(_gene_effects(screen, parts[0]), _gene_effects(screen, parts[1]))


def nothing_yet(screen: Screen, setup: Setup) -> tuple[ConditionSpec, ...]:
    """Every measured single perturbation at dose 0 (if there are doses) and at time 0 (if there are times): its target is the control."""
    measured = {screen.conditions[code] for code in np.unique(screen.condition)}  # the screen also knows the names of what is held out
    singles = [spec for spec in measured if len(spec.parts) == 1]
    at_zero = {ConditionSpec(spec.parts, (0.0,), spec.time) for spec in singles} if setup.dose_key else set()
    at_zero |= {ConditionSpec(spec.parts, spec.doses, 0.0) for spec in singles} if setup.time_key else set()
    return tuple(sorted(at_zero - set(singles)))


def training_steps(
    screen: Screen,
    states: Callable[[np.ndarray], Tensor],
    vocabulary: Vocabulary,
    shift: Callable[[ConditionSpec], np.ndarray] | None,
    setup: Setup,
    *,
    anchors: bool,
    n_sets: int,
    set_size: int,
    seed: int,
    start: int,
    stop: int,
) -> StepDataset:
    """The batches of a fit. `shift` is taken off every target: what a rule explains, the flow need not learn."""
    control = np.flatnonzero(screen.is_control).astype(np.int32)
    first = len(screen.conditions)
    zero = nothing_yet(screen, setup) if anchors else ()
    condition = np.concatenate([screen.condition, *(np.full(len(control), first + i, dtype=np.int32) for i in range(len(zero)))])
    rows = np.concatenate([np.arange(len(screen.cells), dtype=np.int32), *([control] * len(zero))])
    names = [SEPARATOR.join(level) for level in screen.contexts]
    groups = build_groups(condition, screen.context[rows], condition == 0, rows, context_names=names, match_keys=setup.match_keys)
    specs = (*screen.conditions, *zero)
    covariates = vocabulary.levels(screen.covariates, len(screen.cells))
    cells = Cells(states, torch.from_numpy(screen.library), covariates, on_disk=not in_memory(screen.counts))
    ids = vocabulary.ids(specs, {key: [""] * len(specs) for key in vocabulary.covariates})
    if shift is None:
        table = torch.zeros(len(specs), *states(np.arange(1)).shape[1:])
    else:
        table = torch.from_numpy(np.array([shift(spec) for spec in specs], dtype=np.float32))
    called = [f"{describe(specs[c], setup)} {names[k]}".rstrip() for c, k in zip(groups.condition, groups.context, strict=True)]
    sampler = Sampler(groups, n_sets=n_sets, set_size=set_size, seed=seed)
    return StepDataset(sampler, cells, Conditions(_plain(ids), table), start=start, stop=stop, names=called)


def _plain(ids: ConditionIds) -> ConditionIds:
    return ids._replace(covariates=ids.covariates[:, :0])
