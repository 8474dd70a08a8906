"""Does the perturbed gene itself change?"""

import numpy as np

from counterflow.effects.kriging import MeasuredEffects
from counterflow.effects.on_target import in_words, on_target
from counterflow.types import ConditionSpec


def table(specs, effects, noise=0.01):
    n = len(specs)
    return MeasuredEffects(
        tuple(specs), ((),), np.arange(n), np.zeros(n, dtype=int), np.array(effects, dtype=np.float32),
        np.full((n, len(effects[0])), noise, dtype=np.float32), np.zeros((1, len(effects[0])), dtype=np.float32),
    )  # fmt: skip


def spec(*parts, dose=1.0):
    return ConditionSpec(parts, (dose,) * len(parts), 0.0)


def test_the_effect_of_a_perturbation_on_its_own_gene():
    found = on_target(table([spec("B"), spec("A"), spec("drug"), spec("A", "B")], [[0, -1], [-2, 0], [9, 9], [9, 9]]), ("A", "B"))
    assert [(one.perturbation, one.effect, one.direction) for one in found] == [("A", -2.0, -1), ("B", -1.0, -1)]
    assert in_words(found) == "2 of 2 perturbed genes fall, 0 rise"


def test_an_effect_within_its_noise_has_no_direction():
    found = on_target(table([spec("A"), spec("B")], [[0.2, 0], [0, 3.0]]), ("A", "B"))
    assert [one.direction for one in found] == [0, 1]
    assert in_words(found) == "1 of 2 perturbed genes rise, 0 fall; cannot be told: A (+0.20)"


def test_the_largest_dose_counts():
    assert on_target(table([spec("A", dose=10.0), spec("A")], [[-3], [-1]]), ("A",))[0].effect == -3.0


def test_without_a_gene_of_that_name_nothing_is_said():
    assert on_target(table([spec("drug")], [[1]]), ("A",)) == ()
    assert in_words(()) == "no perturbation is named after a measured gene"
