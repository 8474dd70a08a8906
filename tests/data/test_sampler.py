import numpy as np
import pytest

from counterflow.data.sampler import Sampler, build_groups
from counterflow.errors import ConfigError, DataError


def make_cells(seed=0):
    """Three contexts; conditions of 3 to 400 cells; code 0 is the control; rows in random order with gaps."""
    rng = np.random.default_rng(seed)
    cells = [(0, context, True) for context, n in enumerate((50, 300, 7)) for _ in range(n)]
    cells += [(code, context, False) for context in range(3) for code, n in enumerate((3, 40, 100, 400), start=1) for _ in range(n)]
    condition, context, is_control = (np.array(column) for column in zip(*rng.permutation(np.array(cells)), strict=True))
    rows = rng.permutation(10_000)[: len(cells)]
    return condition, context, is_control.astype(bool), rows


@pytest.fixture
def cells():
    return make_cells()


@pytest.fixture
def groups(cells):
    return build_groups(*cells)


def test_groups_partition_the_cells(cells, groups):
    condition, context, is_control, rows = cells
    assert len(groups) == 3 * 5 and groups.n_cells == len(rows)
    assert sorted(np.concatenate(groups.targets)) == sorted(rows)
    where = dict(zip(rows.tolist(), range(len(rows)), strict=True))
    for g in range(len(groups)):
        mine = [where[row] for row in groups.targets[g].tolist()]
        assert set(condition[mine]) == {groups.condition[g]} and set(context[mine]) == {groups.context[g]}
        assert set(groups.controls[g]) == set(rows[is_control & (context == groups.context[g])])
        if is_control[mine].any():
            assert is_control[mine].all() and set(groups.targets[g]) == set(groups.controls[g])


def test_a_context_of_controls_only_is_a_group():
    groups = build_groups(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([True, True, False]))
    assert len(groups) == 3


@pytest.mark.parametrize("control_codes", [0, 7, -1])
def test_all_controls_of_a_context_are_one_group_whatever_their_code(control_codes):
    condition = np.array([control_codes, 3, control_codes, 3, 9])
    groups = build_groups(condition, np.zeros(5, int), np.array([True, False, True, False, False]))
    assert [rows.tolist() for rows in groups.targets] == [[0, 2], [1, 3], [4]]


def test_draw_is_a_pure_function_of_seed_and_step(groups):
    sampler = Sampler(groups, seed=5)
    forward = [sampler.draw(step) for step in range(6)]
    backward = [Sampler(groups, seed=5).draw(step) for step in reversed(range(6))][::-1]
    for one, other in zip(forward, backward, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], Sampler(groups, seed=6).draw(0)[0])
    assert not np.array_equal(forward[1][0], Sampler(groups, seed=1).draw(5)[0])  # seed and step do not trade places


def test_a_set_holds_cells_of_one_group_and_controls_of_its_context(cells, groups):
    condition, context, is_control, rows = cells
    sampler = Sampler(groups, n_sets=16, set_size=32)
    of_row = {row: (condition[i], context[i], is_control[i]) for i, row in enumerate(rows.tolist())}
    for step in range(20):
        targets, controls, group = sampler.draw(step)
        assert targets.shape == controls.shape == group.shape == (16 * 32,)
        for target, control, g in zip(targets.tolist(), controls.tolist(), group.tolist(), strict=True):
            assert of_row[target][:2] == (groups.condition[g], groups.context[g])
            assert of_row[control][1] == groups.context[g] and of_row[control][2]
        assert (np.diff(group.reshape(16, 32), axis=1) == 0).all()
        assert [g for g, _ in sampler.plan(step)] == group[::32].tolist()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_sets_of_a_step(groups, world_size):
    whole = Sampler(groups, n_sets=8, set_size=16, seed=3)
    ranks = [Sampler(groups, 8, 16, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate([sampler.own() for sampler in ranks]).tolist()) == list(range(8 * 16))
    for rank, sampler in enumerate(ranks):
        assert np.unique(sampler.own() // 16).tolist() == list(range(rank, 8, world_size))
        for step in range(5):
            for part, expected in zip(sampler.draw(step), whole.draw(step), strict=True):
                np.testing.assert_array_equal(part, expected)


def test_large_groups_give_distinct_cells_and_small_ones_repeat_evenly(groups):
    sampler = Sampler(groups, n_sets=32, set_size=64)
    seen = set()
    for step in range(20):
        targets, controls, group = (array.reshape(32, 64) for array in sampler.draw(step))
        for mine, source, g in zip(targets, controls, group[:, 0], strict=True):
            for drawn, pool in ((mine, groups.targets[g]), (source, groups.controls[g])):
                repeats = np.unique(drawn, return_counts=True)[1]
                assert len(repeats) == min(len(pool), 64)
                assert repeats.max() - repeats.min() <= 1
            seen.add(len(groups.targets[g]))
    assert seen == {3, 40, 100, 400, 50, 300, 7}
    assert sampler.small_groups == 8  # 3 and 40 in each context, and controls of 50 and 7


def test_every_cell_of_a_large_group_is_drawn_and_equally_often():
    groups = build_groups(np.repeat([0, 1], [300, 500]), np.zeros(800, int), np.repeat([True, False], [300, 500]))
    sampler = Sampler(groups, n_sets=8, set_size=50)
    drawn = np.concatenate([sampler.draw(step)[0] for step in range(400)])
    counts = np.bincount(drawn, minlength=800)
    for cells in (slice(0, 300), slice(300, 800)):
        assert counts[cells].std() / counts[cells].mean() < 1.5 / np.sqrt(counts[cells].mean())
        assert counts[cells].min() > 0


def test_control_sets_are_not_paired_with_themselves():
    groups = build_groups(np.zeros(500, int), np.zeros(500, int), np.ones(500, bool))
    targets, controls, _ = Sampler(groups).draw(0)
    assert (targets != controls).mean() > 0.9


@pytest.mark.parametrize(("weighting", "power"), [("uniform", 0.0), ("sqrt", 0.5), ("proportional", 1.0)])
def test_weighting(cells, weighting, power):
    groups = build_groups(*cells, weighting=weighting)
    weight = np.array([len(rows) for rows in groups.targets]) ** power
    np.testing.assert_allclose(groups.probability, weight / weight.sum())
    sampler = Sampler(groups, n_sets=100)
    drawn = np.bincount([g for step in range(200) for g, _ in sampler.plan(step)], minlength=len(groups))
    expected = 20_000 * groups.probability
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 45  # 14 degrees of freedom: p = 4e-5


def test_steps_per_epoch(groups):
    assert Sampler(groups, n_sets=8, set_size=64).steps_per_epoch == int(np.ceil(groups.n_cells / 512))
    assert Sampler(groups, n_sets=8, set_size=64, rank=1, world_size=2).steps_per_epoch == int(np.ceil(groups.n_cells / 512))


# ------------------------------------------------------------------------------------------------- what cannot be sampled


def test_contexts_without_controls_name_the_key_to_drop():
    names = ["K | b1", "K | b2", "L | b1", "L | b2"]
    context, is_control = np.array([0, 2, 0, 1, 1, 3]), np.array([True, True, False, False, False, False])
    with pytest.raises(
        DataError, match=r"in 'K \| b2' \(2 perturbed cells\), 'L \| b2' \(1 perturbed cells\): drop 'batch' from match_keys"
    ):
        build_groups(np.array([0, 0, 1, 1, 1, 1]), context, is_control, context_names=names, match_keys=("line", "batch"))
    with pytest.raises(DataError, match="no single one"):
        build_groups(np.array([0, 1]), np.array([0, 3]), np.array([True, False]), context_names=names, match_keys=("line", "batch"))
    with pytest.raises(DataError, match="drop a key from match_keys"):
        build_groups(np.array([0, 1]), np.array([0, 3]), np.array([True, False]))


def test_no_cells_no_controls_wrong_lengths_unknown_weighting(cells):
    empty = np.zeros(0, int)
    with pytest.raises(DataError, match="no training cells"):
        build_groups(empty, empty, empty.astype(bool))
    with pytest.raises(DataError, match="no control cells"):
        build_groups(np.array([1]), np.array([0]), np.array([False]))
    with pytest.raises(DataError, match="one entry per cell"):
        build_groups(np.array([1, 2]), np.array([0]), np.array([False]))
    with pytest.raises(ConfigError, match="did you mean 'proportional'"):
        build_groups(*cells, weighting="proportinal")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sets": 8, "world_size": 3}, "take batch_size=384"),
        ({"n_sets": 2, "world_size": 3}, "take batch_size=192"),
        ({"n_sets": 0}, "at least 1"),
        ({"rank": 1}, "rank < world_size"),
        ({"seed": -1}, "seed at least 0"),
    ],
)
def test_samplers_that_cannot_be(groups, arguments, message):
    with pytest.raises(ConfigError, match=message):
        Sampler(groups, **arguments)
