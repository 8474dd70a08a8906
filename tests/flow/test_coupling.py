import subprocess
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from counterflow.errors import ConfigError, DataError
from counterflow.flow.coupling import COUPLINGS, couple, genot, independent, mean_one_cost, ot, pair


@pytest.mark.parametrize("state", [(5,), (2, 3)])
def test_ot_of_a_shuffled_copy_is_the_identity(generator, state):
    target = torch.randn(200, *state, generator=generator)
    order = torch.randperm(200, generator=generator)
    rows = ot(target[order], target, generator)
    assert torch.equal(order[rows], torch.arange(200))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_pairs_never_leave_their_group_and_only_the_source_moves(generator, coupling):
    group = torch.randint(0, 4, (300,), generator=generator)
    control = torch.randn(300, 3, generator=generator)
    target = torch.randn(300, 3, generator=generator)
    kept = target.clone()
    rows = pair(coupling, control, target, group, generator)
    assert torch.equal(group[rows], group)
    assert torch.equal(rows.sort().values, torch.arange(300))  # with equal counts each control is used once
    assert torch.equal(target, kept)
    moved = couple(coupling, control, target, group, torch.Generator().manual_seed(1))
    assert {tuple(row) for row in moved.tolist()} == {tuple(row) for row in control.tolist()}


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(("n", "m"), [(40, 97), (130, 30), (1, 20), (20, 1), (700, 300)])
def test_unequal_counts(generator, coupling, n, m):
    group, control_group = torch.arange(2 * m) % 2, torch.arange(2 * n) % 2
    control, target = torch.randn(2 * n, 3, generator=generator), torch.randn(2 * m, 3, generator=generator)
    rows = pair(coupling, control, target, group, generator, control_group)
    assert rows.shape == (2 * m,)
    assert torch.equal(control_group[rows], group)


@pytest.mark.parametrize("method", ["exact", "sinkhorn"])
def test_unequal_ot_keeps_cell_states_apart(generator, method):
    """Two states in equal shares on both sides, with different numbers of cells: no pair crosses."""
    state = lambda n: (torch.arange(n) % 2).float()[:, None] * 20 + torch.randn(n, 4, generator=generator)  # noqa: E731
    rows = ot(state(60), state(80), generator, method=method)
    assert torch.equal(rows % 2, torch.arange(80) % 2)


def test_sinkhorn_is_softer_than_exact(generator):
    source, target = torch.randn(2, 100, 2, generator=generator)
    cost = torch.from_numpy(mean_one_cost(source, target))
    total = lambda rows: cost[torch.arange(100), rows].mean()  # noqa: E731
    exact, soft, random = (
        total(f(source, target, generator)) for f in (ot, lambda *a: ot(*a, method="sinkhorn", epsilon=0.1), independent)
    )
    assert exact < soft < random


def test_sub_batches_keep_most_of_the_exact_gain():
    """engine.md measured .86 / .79 / .71 of the gain over random pairs for 256 / 128 / 64 cells (n = 1024, d = 50)."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1024, 50, generator=generator)
    cost = torch.from_numpy(mean_one_cost(source, target))
    best = 1 - cost[linear_sum_assignment(cost)].mean()  # the mean cost of random pairs is 1
    share = [float((1 - cost[torch.arange(1024), ot(source, target, generator, max_cells=c)].mean()) / best) for c in (256, 128, 64)]
    assert share == pytest.approx([0.86, 0.79, 0.71], abs=0.04)


def test_sub_batches_of_any_size_pair_every_cell_once(generator):
    source, target = torch.randn(2, 77, 3, generator=generator)
    assert torch.equal(ot(source, target, generator, max_cells=10).sort().values, torch.arange(77))


def test_independent_pairs_are_random_and_the_generator_decides(generator):
    x = torch.randn(50, 2, generator=generator)
    first, second = (independent(x, x, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, independent(x, x, torch.Generator().manual_seed(1)))


def test_genot_starts_from_noise_and_hands_back_the_paired_control(generator):
    target = torch.randn(200, 4, generator=generator) + 5
    group = torch.arange(200) % 2
    order = torch.cat([i[torch.randperm(100, generator=generator)] for i in ((group == 0).nonzero()[:, 0], (group == 1).nonzero()[:, 0])])
    order = order.reshape(2, 100).T.reshape(-1)  # shuffled inside the groups
    noise, control = genot(target[order], target, group, generator)
    assert torch.equal(control, target)
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
    assert noise.shape == target.shape


def test_your_own_coupling(generator):
    x = torch.randn(6, 2, generator=generator)
    rows = pair(
        lambda source, target, generator: torch.zeros(len(target), dtype=torch.long), x, x, torch.tensor([0, 0, 1, 1, 2, 2]), generator
    )
    assert rows.tolist() == [0, 0, 2, 2, 4, 4]


def test_errors_name_the_group_and_the_near_match(generator):
    x = torch.zeros(4, 2)
    with pytest.raises(DataError, match="group 7 has 2 target cells"):
        pair("ot", x, x, torch.tensor([0, 0, 7, 7]), generator, torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ConfigError, match="independent"):
        pair("independant", x, x, torch.zeros(4), generator)


def test_pot_is_not_imported_with_the_module():
    code = "import sys, counterflow.flow.coupling; sys.exit('ot' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
