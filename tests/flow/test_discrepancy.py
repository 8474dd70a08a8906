"""The distributional term sees what the mean squared error does not, and is the metric of the evaluation on equal crowds."""

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist

from counterflow.evaluate.metrics import mmd
from counterflow.flow.discrepancy import group_mmd
from counterflow.module import FlowModule
from counterflow.nn.labels import LabelTable
from counterflow.types import Batch, ConditionIds


def crowds(n=200, spread=1.0, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return shift + spread * torch.randn(n, 5, generator=generator), torch.randn(n, 5, generator=generator)


def test_it_is_the_metric_up_to_the_unit_of_the_kernel():
    x, y = crowds(shift=0.5)
    group = torch.zeros(200, dtype=torch.long)
    scale = np.mean(pdist(y.numpy(), "sqeuclidean")) / np.median(pdist(y.numpy(), "sqeuclidean"))
    assert 0.8 < scale < 1.3  # mean here, median there
    np.testing.assert_allclose(float(group_mmd(x, y, group)), mmd(x.numpy(), y.numpy()), rtol=0.15)
    by_hand = [np.exp(-cdist(a, b, "sqeuclidean") / np.mean(pdist(y.numpy(), "sqeuclidean"))) for a, b in ((x, y), (x, x), (y, y))]
    assert by_hand[0].mean() < (by_hand[1].sum() - 200) / (200 * 199)


def test_equal_crowds_are_at_zero_and_spread_is_seen_with_equal_means():
    group = torch.zeros(200, dtype=torch.long)
    assert abs(float(group_mmd(*crowds(), group))) < 0.01
    x, y = crowds(spread=0.3)
    assert float(group_mmd(x - x.mean(0) + y.mean(0), y, group)) > 0.1


def test_groups_are_kept_apart_and_lonely_cells_say_nothing():
    x, y = crowds()
    group = torch.arange(200) % 2
    swapped = torch.cat([x[group == 0] + 3, x[group == 1] - 3]), torch.cat([y[group == 0] - 3, y[group == 1] + 3])
    sorted_group = torch.cat([torch.zeros(100), torch.ones(100)]).long()
    assert float(group_mmd(*swapped, sorted_group)) > 0.3
    assert float(group_mmd(*swapped, torch.zeros(200).long())) < 0.05  # as one crowd they are alike
    assert float(group_mmd(x[:2], y[:2], torch.tensor([0, 1]))) == 0


def test_the_loss_adds_it_with_its_weight_and_it_has_a_gradient(randomise):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 5)

        def forward(self, x, t, condition):
            return self.layer(x)

    def module(weight):
        torch.manual_seed(0)
        return randomise(FlowModule(Net(), LabelTable(3, 4), (5,), coupling="independent", mmd_weight=weight))

    x, y = crowds(64)
    ids = ConditionIds(torch.ones(64, 1, dtype=torch.long), torch.ones(64, 1), torch.zeros(64), torch.zeros(64, 0, dtype=torch.long))
    batch = Batch(y, x, ids, torch.arange(64) // 32, torch.ones(64))
    losses = {w: module(w).loss(batch, torch.Generator().manual_seed(1)) for w in (0.0, 1.0, 2.0)}
    term = losses[1.0] - losses[0.0]
    assert term > 1e-3
    torch.testing.assert_close(losses[2.0] - losses[0.0], 2 * term)
    term.backward()
