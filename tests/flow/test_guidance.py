import pytest
import torch

from counterflow.flow.guidance import bind, classifier_free, composed, contrast
from counterflow.flow.solvers import euler
from counterflow.types import Condition


class Counted:
    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self, x, t):
        self.calls += 1
        return torch.full_like(x, self.value)


@pytest.fixture
def condition():
    return Condition(torch.randn(4, 2), torch.randn(4, 1, 2), torch.ones(4, 1, dtype=torch.bool))


@pytest.mark.parametrize("guide", [classifier_free, contrast])
def test_guidance_extrapolates_from_the_reference(guide):
    v, reference, x = Counted(3.0), Counted(1.0), torch.zeros(4, 2)
    for w in (0.0, 0.5, 2.0, -1.0):
        assert torch.allclose(guide(v, reference, w)(x, torch.tensor(0.5)), torch.full_like(x, 1 + 2 * w))


@pytest.mark.parametrize("guide", [classifier_free, contrast])
def test_no_guidance_asks_only_the_conditional_velocity(guide):
    v, reference = Counted(3.0), Counted(1.0)
    guide(v, reference, 1.0)(torch.zeros(4, 2), torch.tensor(0.5))
    assert (v.calls, reference.calls) == (1, 0)


def test_outside_the_interval_the_velocity_is_plain_and_the_reference_is_not_evaluated():
    v, reference, x = Counted(3.0), Counted(1.0), torch.zeros(3, 2)
    guided = classifier_free(v, reference, 2.0, interval=(0.2, 0.6))
    assert torch.equal(guided(x, torch.tensor(0.1)), torch.full_like(x, 3))
    assert torch.equal(guided(x, torch.tensor(0.7)), torch.full_like(x, 3))
    assert reference.calls == 0
    assert torch.equal(guided(x, torch.tensor(0.2)), torch.full_like(x, 5))
    per_cell = guided(x, torch.tensor([0.1, 0.3, 0.9]))
    assert torch.equal(per_cell[:, 0], torch.tensor([3.0, 5.0, 3.0]))


def test_bind_gives_the_network_one_time_per_cell_and_its_condition(condition):
    seen = []

    def network(x, t, condition):
        seen.append(t)
        return x * condition.pooled[:, :1]

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    v = bind(network, condition)
    assert torch.equal(v(x, torch.tensor(0.25)), x * condition.pooled[:, :1])
    assert torch.equal(seen[0], torch.full((4,), 0.25))
    v(x, torch.arange(4) / 4)
    assert torch.equal(seen[1], torch.arange(4) / 4)


def test_bind_turns_x_prediction_into_a_velocity(condition):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    v = bind(lambda x, t, condition: torch.ones_like(x), condition, prediction="x")
    assert torch.allclose(euler(v, x, torch.linspace(0, 1, 11)), torch.ones_like(x), atol=1e-6)


def test_contrast_scales_the_effect_of_a_constant_velocity():
    x = torch.zeros(2, 2)
    control, perturbed = Counted(0.5), Counted(0.8)
    effect = [euler(contrast(perturbed, control, w), x, torch.linspace(0, 1, 5)) - 0.5 for w in (1.0, 3.0)]
    assert torch.allclose(effect[1], 3 * effect[0])


def test_parts_are_added_up_and_one_part_is_itself():
    control, a, b = (lambda x, t: x), (lambda x, t: x + 2), (lambda x, t: 3 * x)
    x, t = torch.randn(4, 3), torch.tensor(0.3)
    torch.testing.assert_close(composed(control, [a])(x, t), a(x, t))
    torch.testing.assert_close(composed(control, [a, b])(x, t), x + 2 + 2 * x)
    torch.testing.assert_close(composed(control, [])(x, t), x)
