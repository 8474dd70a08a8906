from functools import partial

import pytest
import torch

from counterflow.flow.time import TIMES, logit_normal, mode


@pytest.mark.parametrize("name", TIMES)
def test_times_are_inside_symmetric_and_reproducible(name):
    draw = lambda: TIMES[name](100_000, torch.Generator().manual_seed(3), "cpu")  # noqa: E731
    t = draw()
    assert t.shape == (100_000,)
    assert 0 <= t.min() < 0.02 and 0.98 < t.max() <= 1
    assert abs(t.mean() - 0.5) < 0.005
    assert torch.equal(t, draw())


def test_uniform_and_logit_normal_moments(generator):
    assert abs(TIMES["uniform"](100_000, generator, "cpu").var() - 1 / 12) < 1e-3
    logits = torch.logit(partial(logit_normal, mean=-0.5, std=2.0)(100_000, generator, "cpu").double())
    assert abs(logits.mean() + 0.5) < 0.03 and abs(logits.std() - 2) < 0.03


@pytest.mark.parametrize("s", [-0.8, 0.0, 0.6, 1.0])
def test_mode_has_its_density_in_the_middle(generator, s):
    t = mode(400_000, generator, s=s)
    share = ((t > 0.49) & (t < 0.51)).float().mean() / 0.02
    assert abs(share - 1 / (1 + s * (1 - torch.pi / 2))) < 0.06  # 1 / |dt/du| at u = 1/2
