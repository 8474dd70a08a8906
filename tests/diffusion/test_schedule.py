import torch

from counterflow.diffusion.schedule import Schedule, add_noise, at, linear_schedule


def test_the_tables_are_float64_and_those_of_the_definition(schedule):
    assert len(schedule) == 1000 and schedule.betas.dtype == torch.float64
    assert schedule.betas[0] == 1e-4 and schedule.betas[-1] == 0.02
    left = 1.0
    for i, beta in enumerate(schedule.betas.tolist()):
        before, left = left, left * (1 - beta)
        assert abs(schedule.A[i] - left) < 1e-14 and abs(schedule.A_before[i] - before) < 1e-14
        assert abs(schedule.posterior_variance[i] - beta * (1 - before) / (1 - left)) < 1e-14
    assert schedule.A[-1] < 5e-5  # next to nothing is left


def test_the_first_log_variances_are_those_of_step_1(schedule):
    for table in (schedule.log_posterior_variance, schedule.log_large_variance):
        assert table.isfinite().all() and table[0] == schedule.posterior_variance[1].log()
    assert torch.equal(schedule.log_large_variance[1:], schedule.betas[1:].log())


def test_noise_added_step_by_step_is_noise_added_at_once(generator):
    """By simulation: 200,000 pixels through ten steps of x -> sqrt(1 - beta) x + sqrt(beta) noise."""
    schedule = Schedule(torch.linspace(0.05, 0.3, 10, dtype=torch.float64), torch.arange(10))
    x = torch.full((200_000, 1), 2.0)
    for beta in schedule.betas.float():
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    at_once = add_noise(schedule, torch.full_like(x, 2.0), noise, 9)
    assert abs(x.mean() - at_once.mean()) < 0.01 and abs(x.std() - at_once.std()) < 0.01


def test_entries_have_the_precision_and_the_shape_of_the_images(schedule):
    x = torch.zeros(3, 2, 4, 4)
    one, each = at(schedule.A, 5, x), at(schedule.A, torch.tensor([5, 0, 999]), x)
    assert one.dtype == each.dtype == torch.float32 and one.ndim == 0 and each.shape == (3, 1, 1, 1)
    assert one == each[0, 0, 0, 0] == schedule.A[5].float()


def test_other_lengths_have_the_same_ends():
    assert torch.equal(linear_schedule(7).betas[[0, -1]], linear_schedule().betas[[0, -1]])
