"""Which unmeasured conditions are looked at: exactly the best ones, without looking at all."""

import time
from itertools import combinations

import numpy as np

from counterflow.effects.candidates import unmeasured_pairs, unmeasured_singles
from counterflow.types import ConditionSpec


def make(parts):
    return ConditionSpec(parts, (1.0,) * len(parts), 0.0)


def test_the_best_pairs_are_those_of_a_full_search():
    rng = np.random.default_rng(0)
    for n, most in [(2, 5), (9, 4), (30, 50), (30, 10_000)]:
        score = {f"P{i:02d}": float(value) for i, value in enumerate(rng.normal(size=n).round(1))}  # rounded: some are even
        every = [make(pair) for pair in combinations(sorted(score), 2)]
        measured = {spec for spec in every if rng.random() < 0.3} | {make(("P00",))}
        found = unmeasured_pairs(score, make, measured, most)
        wanted = sorted(-sum(score[name] for name in spec.parts) for spec in every if spec not in measured)[:most]
        assert [-sum(score[name] for name in spec.parts) for spec in found] == wanted
        assert not set(found) & measured and len(set(found)) == len(found)


def test_millions_of_pairs_are_not_looked_at():
    score = {f"P{i}": float(value) for i, value in enumerate(np.random.default_rng(1).normal(size=5_000))}
    begun = time.process_time()
    assert len(unmeasured_pairs(score, make, set(), 1_000)) == 1_000
    assert time.process_time() - begun < 1


def test_singles_are_those_that_were_not_measured_alone():
    measured = {make(("A",)), make(("B", "C"))}
    assert unmeasured_singles(["A", "B", "C"], make, measured) == [make(("B",)), make(("C",))]
