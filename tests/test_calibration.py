"""How far the flow is trusted: right where it was right on what was left out, and the rule everywhere else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from counterflow.calibration import SHARES, Judged, folds, judge, learn_trust
from counterflow.data.screen import Screen
from counterflow.effects.kriging import KrigedRule, MeasuredEffects
from counterflow.types import ConditionSpec

CONTROL, A, B = ConditionSpec(), ConditionSpec(("A",), (1.0,)), ConditionSpec(("B",), (1.0,))
AB = ConditionSpec(("A", "B"), (1.0, 1.0))


def unit(kind, along, square, best=0.5):
    return Judged(kind, along, square, tuple(abs(share - best) for share in SHARES))


def test_a_flow_that_says_what_the_rule_misses_is_trusted_and_one_that_does_not_is_not():
    right = learn_trust([unit("combination", s, s) for s in (1.0, 2.0, 3.0)])
    wrong = learn_trust([unit("combination", -s, s) for s in (1.0, 2.0, 3.0)])
    assert right["combination"].mean == 1.0 and wrong["combination"].mean == 0.0
    assert learn_trust([unit("context", s / 2, s) for s in (1.0, 2.0, 3.0)])["context"].mean == pytest.approx(0.5)


def test_units_that_disagree_say_little_and_one_says_nothing():
    disagree = learn_trust([unit("context", 1.0, 1.0), unit("context", -0.6, 1.0)])
    assert disagree["context"].mean == 0.0
    assert learn_trust([unit("context", 1.0, 1.0)]) == {}


def test_the_spread_is_the_share_nearest_to_the_real_cells_and_a_measured_mean_is_not_replaced():
    learnt = learn_trust([unit("seen", 5.0, 5.0, best=0.75), unit("combination", 1, 1, best=0.25), unit("combination", 1, 1, best=0.25)])
    assert learnt["seen"].spread == 0.75 and learnt["seen"].mean == 0.0
    assert learnt["combination"].spread == 0.25


def screen(states, condition, specs, context=None):
    n = len(states)
    return Screen(
        counts=sparse.csr_matrix((n, 1), dtype=np.float32),
        library=np.ones(n, dtype=np.float32),
        genes=("g",),
        cells=tuple(f"c{i}" for i in range(n)),
        conditions=specs,
        condition=condition,
        contexts=(("x",), ("y",)),
        context=np.zeros(n, dtype=int) if context is None else context,
        covariates=pd.DataFrame(index=range(n)),
        split=np.full(n, "train"),
    )


@pytest.fixture
def pair():
    """Controls and two singles, and a pair that does twice the sum and scatters its cells in a direction of its own."""
    rng = np.random.default_rng(0)
    condition = np.repeat([0, 1, 2, 3], 150)
    shift = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 2, 0]])[condition]
    states = rng.normal(0, 0.1, (600, 3)) + shift
    states[condition == 3, 2] += rng.permutation(np.repeat([-2, 2], 75))
    cells = screen(states, condition, (CONTROL, A, B, AB))
    tensor = torch.from_numpy(states.astype(np.float32))

    def values(rows):
        return tensor[torch.from_numpy(np.asarray(rows))]

    kept = np.flatnonzero(condition != 3)
    few = cells.rows(kept)
    measured = MeasuredEffects.measure(lambda r: values(kept[r]).numpy(), few.conditions, few.condition, few.contexts, few.context)
    rule = KrigedRule(measured)
    return cells, values, rule, condition == 3


def scattered(shift):
    def displacement(rows, spec):
        sign = torch.where(torch.arange(len(rows)) % 2 == 0, 1.0, -1.0)
        return torch.tensor(shift) + torch.stack([0 * sign, 0 * sign, 2 * sign], 1)

    return displacement


def test_a_left_out_pair_is_judged_by_what_the_sum_misses(pair):
    cells, values, rule, left_out = pair
    one = next(judge(cells, left_out, values, scattered([1.0, 1.0, 0.0]), rule))  # beyond the anchor: what is missing, exactly
    assert one.kind == "combination"
    assert one.along == pytest.approx(one.square, rel=0.1)
    assert np.argmin(one.distance) == len(SHARES) - 1  # its cells scatter as the real ones do
    still = next(judge(cells, left_out, values, lambda rows, spec: torch.zeros(len(rows), 3), rule))
    assert abs(still.along) < 0.2 and np.ptp(still.distance) == pytest.approx(0, abs=1e-6)
    tight = next(judge(cells, left_out, values, lambda rows, spec: -values(rows), rule))  # all cells to one point
    assert tight.distance[0] < tight.distance[-1]


def test_all_cells_judged_by_their_own_fit_are_of_the_kind_seen(pair):
    cells, values, rule, _ = pair
    kinds = {one.kind for one in judge(cells, ~cells.is_control, values, scattered([0.0, 0.0, 0.0]), rule)}
    assert kinds == {"seen"}


def test_a_condition_measured_elsewhere_is_of_the_kind_context(pair):
    cells, values, rule, _ = pair
    context = np.arange(len(cells.cells)) % 2
    there = screen(values(np.arange(600)).numpy(), cells.condition, cells.conditions, context)
    left_out = (there.condition == 1) & (context == 1)
    assert [one.kind for one in judge(there, left_out, values, scattered([0.0, 0.0, 0.0]), rule)] == ["context"]


def test_folds_leave_out_some_of_every_kind_and_never_controls(pair):
    cells = pair[0]
    specs = (CONTROL, *(ConditionSpec((x,), (1.0,)) for x in "ABCDEF"), *(ConditionSpec(("A", x), (1.0, 1.0)) for x in "BCDEF"))
    condition = np.arange(240) % len(specs)
    many = screen(np.zeros((240, 3)), condition, specs)
    masks = list(folds(many, False, 0))
    assert len(masks) == 2 and not (masks[0] & masks[1]).any()
    for mask in masks:
        assert mask.any() and not (mask & many.is_control).any()
        assert all(len(specs[code].parts) == 2 for code in np.unique(condition[mask]))  # features are off: no single leaves
    assert list(folds(cells, False, 0)) == []  # one pair is too few


def test_a_fold_that_would_leave_nothing_to_measure_is_not_made():
    """Every line has its own perturbation: leaving out lines and perturbations together may leave none."""
    specs = (CONTROL, *(ConditionSpec((x,), (1.0,)) for x in "ABC"))
    condition, context = np.tile([0, 1, 0, 2, 0, 3], 10), np.tile([0, 0, 1, 1, 2, 2], 10)
    lines = replace(screen(np.zeros((60, 3)), condition, specs, context), contexts=(("x",), ("y",), ("z",)))
    for seed in range(30):
        for left_out in folds(lines, True, seed):
            assert (~left_out & ~lines.is_control).any()
