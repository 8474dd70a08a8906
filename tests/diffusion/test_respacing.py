import pytest
import torch

from counterflow.diffusion.respacing import kept_times, respace
from counterflow.errors import ConfigError


def test_even_spacing_reaches_both_ends():
    assert kept_times(1000, 1000) == list(range(1000))
    assert kept_times(2, 1000) == [0, 999]
    assert kept_times(7, 1000) == [0, 166, 333, 500, 666, 832, 999]  # 499.5 and 832.4999...: added up, halves to even
    assert kept_times(250, 1000)[:4] == [0, 4, 8, 12] and len(set(kept_times(250, 1000))) == 250


def test_ddim_spacing_is_a_stride_from_0():
    assert kept_times("ddim50", 1000) == list(range(0, 1000, 20))
    assert kept_times("ddim7", 1000) == list(range(0, 1000, 143))


@pytest.mark.parametrize("steps", [20, "ddim50"])
def test_the_signal_left_is_that_of_the_original_times(schedule, steps):
    few = respace(schedule, steps)
    assert torch.equal(few.times, torch.tensor(kept_times(steps, 1000)))
    assert torch.allclose(few.A, schedule.A[few.times], rtol=1e-12, atol=0)
    again = respace(few, 5)
    assert torch.equal(again.times, few.times[kept_times(5, len(few))])
    assert torch.allclose(again.A, schedule.A[again.times], rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [0, 1, 1001, "50", "ddim", "ddim999", "ddim-5"])
def test_steps_that_there_cannot_be(steps):
    with pytest.raises(ConfigError, match="steps"):
        kept_times(steps, 1000)
