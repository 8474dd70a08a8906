import pytest
import torch

from counterflow.nn.relaxation import Relaxation, relax

B, N, D = 4, 3, 5


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return {
        "seen": draw(B, N, D), "gate": draw(B, N, D), "at": draw(B, N).sort(1).values, "known": torch.ones(B, N, dtype=torch.bool),
        "until": 1 + draw(B), "level": draw(B, D) - 0.5, "rate": 3 * draw(B, D),
    }  # fmt: skip


def test_between_points_it_solves_the_equation():
    """By many small Euler steps of dh/dt = rate (level - h)."""
    given = inputs()
    state, time, steps = torch.zeros(B, D, dtype=torch.float64), torch.zeros(B, dtype=torch.float64), 20_000
    for i in range(N + 1):
        end = given["at"][:, i] if i < N else given["until"]
        for _ in range(steps):
            state = state + ((end - time) / steps)[:, None] * given["rate"] * (given["level"] - state)
        time = end
        if i < N:
            state = state + given["gate"][:, i] * (given["seen"][:, i] - state)
    torch.testing.assert_close(relax(**given), state, atol=2e-4, rtol=0)


def test_an_interval_may_be_cut_in_two():
    given = inputs()
    cut = {name: given[name] for name in ("known", "until", "level", "rate")}
    between = given["at"][:, 1:2] * 0.4 + given["at"][:, 2:] * 0.6

    def with_one_more(value, more):
        return torch.cat([value[:, :2], more, value[:, 2:]], dim=1)

    nothing = torch.zeros(B, 1, D, dtype=torch.float64)  # a point at which nothing is read
    cut |= {"seen": with_one_more(given["seen"], nothing), "gate": with_one_more(given["gate"], nothing)}
    cut |= {"at": with_one_more(given["at"], between), "known": torch.ones(B, N + 1, dtype=torch.bool)}
    torch.testing.assert_close(relax(**cut), relax(**given), atol=1e-12, rtol=0)


def test_what_is_not_known_is_not_read_and_has_finite_gradients():
    given = inputs()
    given["known"][:, 1] = False
    without = {name: value[:, [0, 2]] if name in ("seen", "gate", "at", "known") else value for name, value in given.items()}
    torch.testing.assert_close(relax(**given), relax(**without), atol=1e-12, rtol=0)
    given["at"][:, 1], given["rate"] = 0.0, (1e4 * given["rate"]).requires_grad_()  # earlier than the point before it
    relax(**given).sum().backward()
    assert given["rate"].grad.isfinite().all()


def test_at_time_zero_there_is_no_effect_and_much_later_only_the_level():
    given = inputs()
    given["known"][:] = False
    assert (relax(**given | {"until": torch.zeros(B, dtype=torch.float64)}) == 0).all()
    torch.testing.assert_close(relax(**given | {"until": torch.full((B,), 1e6, dtype=torch.float64)}), given["level"])


def test_later_points_say_nothing_of_earlier_times(randomise):
    """Causal: the caller marks what lies beyond `until` as not known; what is known may matter."""
    network = randomise(Relaxation(6, 8, D)).double()
    seen, at = torch.randn(B, N, 6).double(), torch.arange(1.0, N + 1).expand(B, N).double()
    until, condition = torch.full((B,), 2.5).double(), torch.randn(B, 8).double()

    def state(seen, until=until):
        return network(seen, at, at <= until[:, None], until, condition)

    future, past = seen.clone(), seen.clone()
    future[:, 2] += 1
    past[:, 1] += 1
    assert (state(future) == state(seen)).all()
    assert (state(past) - state(seen)).abs().max() > 1e-3
    assert (state(future, until + 1) - state(seen, until + 1)).abs().max() > 1e-3


def test_rates_span_two_decades_at_the_start():
    rate = Relaxation(6, 8, 64).log_rate.exp()
    assert [rate.min().item(), rate.max().item()] == pytest.approx([0.1, 10.0], rel=1e-4)
