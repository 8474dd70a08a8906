"""Forms as people fill them in: what is meant, or one message that says what to do."""

import pytest

from counterflow import ConfigError
from counterflow.explore.questions import Choices, EffectQuestion, RankQuestion

PLAIN = Choices(("CEBPA", "KLF1", "SET"), ("KLF1", "KLF1+SET"), (), (), {"cell_type": ("B", "T")}, ("cell_type",))
DOSED = Choices(("drug", "other"), ("drug",), (0.5, 2.0), (3.0, 24.0), {}, ())


def effect(choices=PLAIN, **fields):
    return EffectQuestion.read({name: [text] for name, text in fields.items()}, choices, "+", "control")


def rank(choices=PLAIN, **fields):
    return RankQuestion.read({name: [text] for name, text in fields.items()}, choices)


def test_perturbations_may_come_in_any_order_and_in_one_field():
    wanted = ("KLF1", "SET")
    assert effect(p1="SET", p2=" KLF1 ").parts == effect(p1="SET + KLF1").parts == effect(p2="KLF1", p3="SET").parts == wanted


def test_what_is_left_empty_has_a_default():
    question = effect(p1="KLF1", in_cell_type="T")
    assert (question.interval, question.n_cells, question.dose, question.time) == (0.9, 256, None, None)
    assert question.levels == (("cell_type", "T"),) and effect(p1="KLF1").levels == (("cell_type", "B"),)
    assert (effect(DOSED, p1="drug").dose, effect(DOSED, p1="drug").time) == (2.0, 24.0)
    assert (effect(DOSED, p1="drug", dose="1.5", time="6").dose, effect(DOSED, p1="drug", dose="1.5", time="6").time) == (1.5, 6.0)
    assert rank(DOSED, up="A").dose is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "choose a perturbation"),
        ({"p1": "  "}, "choose a perturbation"),
        ({"p1": "control"}, "'control' is the control"),
        ({"p1": "KLF2"}, "no perturbation 'KLF2': did you mean 'KLF1'"),
        ({"p1": "KLF1", "p2": "klf"}, "no perturbation 'klf'"),
        ({"p1": "KLF1", "p2": "KLF1"}, "'KLF1' is chosen twice"),
        ({"p1": "KLF1", "in_cell_type": "NK"}, "no control cell has cell_type = 'NK'"),
        ({"p1": "KLF1", "interval": "90"}, "interval '90': choose one of"),
        ({"p1": "KLF1", "cells": "many"}, "cells 'many': give a whole number"),
        ({"p1": "KLF1", "cells": "0"}, "from 1 to 20,000"),
        ({"p1": "KLF1", "cells": "9" * 30}, "from 1 to 20,000"),
    ],
)
def test_mistakes_about_effects(fields, words):
    with pytest.raises(ConfigError, match=words):
        effect(**fields)


@pytest.mark.parametrize("text", ["-1", "much", "inf", "nan", "0"])
def test_doses_are_numbers_above_zero(text):
    with pytest.raises(ConfigError, match=f"dose '{text}' is not a number above 0; measured were 0.5, 2"):
        effect(DOSED, p1="drug", dose=text)


def test_three_ways_to_say_where_to_go():
    assert rank(up="A, B\nA", down="C").up == ("A", "B")
    assert rank(like="KLF1+SET").like == "KLF1+SET"
    between = rank(from_cell_type="B", to_cell_type="T", in_cell_type="B", parts="1")
    assert (between.start, between.end, between.levels, between.most_parts) == (
        (("cell_type", "B"),), (("cell_type", "T"),), (("cell_type", "B"),), 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "in one of them"),
        ({"up": " ,; "}, "in one of them"),
        ({"up": "A", "like": "KLF1"}, "only one of them"),
        ({"like": "SET"}, "'SET' was not measured in training"),
        ({"from_cell_type": "B"}, "two different kinds of cells"),
        ({"from_cell_type": "B", "to_cell_type": "B"}, "two different kinds of cells"),
        ({"from_cell_type": "B", "to_cell_type": "NK"}, "no control cell has cell_type = 'NK'"),
    ],
)
def test_mistakes_about_where_to_go(fields, words):
    with pytest.raises(ConfigError, match=words):
        rank(**fields)
