"""Names to integers and back, and how far training carries a condition."""

import json

import pytest
import torch

from counterflow.conditions.vocabulary import UNKNOWN, Vocabulary
from counterflow.types import ConditionSpec


def spec(*parts, dose=1.0, time=0.0):
    return ConditionSpec(parts, (dose,) * len(parts), time)


@pytest.fixture
def vocabulary():
    return Vocabulary(
        entities=("A", "B", "C", "F"),
        seen=frozenset("ABC"),
        covariates={"cell_type": ("NK", "T")},
        perturbed_levels={"cell_type": frozenset(["T"])},
        measured=frozenset((one, ("T",)) for one in [spec(), spec("A"), spec("B"), spec("B", "C"), spec("A", dose=0.5)]),
    )


def test_ids_start_after_padding_and_unknown(vocabulary):
    ids = vocabulary.ids([spec(), spec("A"), spec("B", "C"), spec("X")], {"cell_type": ["T", "NK", "T", "B"]})
    assert ids.perturbation.tolist() == [[0, 0], [2, 0], [3, 4], [UNKNOWN, 0]]
    assert ids.dose.tolist() == [[0, 0], [1, 0], [1, 1], [1, 0]]
    assert ids.covariates.tolist() == [[2], [0], [2], [0]]  # NK never met a perturbation, B is unheard of: both null


def test_times_and_no_covariates():
    vocabulary = Vocabulary(("A",), frozenset("A"), {}, {}, frozenset())
    ids = vocabulary.ids([spec("A", dose=3.0, time=6.0)], {})
    assert ids.time.tolist() == [6.0] and ids.dose.tolist() == [[3.0]] and ids.covariates.shape == (1, 0)
    assert vocabulary.ids([], {}).perturbation.shape == (0, 1)


@pytest.mark.parametrize(
    ("condition", "support"),
    [
        (spec(), "seen"),
        (spec("A"), "seen"),
        (spec("A", dose=0.5), "seen"),
        (spec("A", dose=0.7), "components-seen"),
        (spec("A", time=2.0), "components-seen"),
        (spec("A", "B"), "components-seen"),
        (spec("C"), "components-seen"),
        (spec("A", "F"), "features-only"),
        (spec("A", "X"), "unknown"),
    ],
)
def test_support(vocabulary, condition, support):
    assert vocabulary.support(condition) == support


def test_unknown_parts(vocabulary):
    assert vocabulary.unknown(spec("A", "X", "Y")) == ["X", "Y"]
    assert vocabulary.generalises


def test_json_round_trip(vocabulary):
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_ids_are_tensors_of_the_right_type(vocabulary):
    ids = vocabulary.ids([spec("A")], {"cell_type": ["T"]})
    assert [part.dtype for part in ids] == [torch.int64, torch.float32, torch.float32, torch.int64]
