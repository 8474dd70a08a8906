"""Drawings: every point in its place, a name for each, words for those who do not see them."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from counterflow.page.drawing import Frame, Points, _ticks, intervals, plate, scatter


def points(text):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4">', text)]


def test_points_lie_where_their_values_are():
    values = np.array([0.0, 1.0, 2.0])
    text = scatter([Points("genes", values, values, "#000", titles=["a", "b", "c"])], alt="x", x_label="x", y_label="y")
    (x0, y0), (x1, y1), (x2, y2) = points(text)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x2 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11) and y0 > y2  # up is more


def test_it_is_valid_with_names_and_words_and_nothing_unescaped():
    one = Points('<b>&"', np.array([1.0]), np.array([2.0]), "#000", titles=["<i>"], mean=True)
    for text in (
        scatter([one], alt='a "b" <c>', x_label="<x>", y_label="&", names=[(1.0, 2.0, "<n>")], line=(1.0, "<l>"), through_zero=True),
        intervals(["<g>"], np.array([1.0]), np.array([0.5]), np.array([1.5]), np.array([np.nan]), alt="<a>", x_label="<x>"),
        plate([("A1", "<w>", 0.5)], alt="<a>"),
    ):
        root = ElementTree.fromstring(str(text))
        assert root.get("role") == "img" and root.get("aria-label") in ('a "b" <c>', "<a>")
        assert [node.text for node in root.iter() if node.tag == "title"]


def test_one_point_and_no_spread_can_be_drawn():
    Frame.around(np.array([3.0]), np.array([0.0])).at(3.0, 0.0)
    text = scatter([Points("one", np.array([3.0]), np.array([0.0]), "#000")], alt="x", x_label="x", y_label="y")
    assert "nan" not in text and "inf" not in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.003, 0.0041), (12.0, 90_000.0), (-5.5, -5.49)])
def test_ticks_are_round_and_inside(low, high):
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 8 and low <= min(ticks) and max(ticks) <= high
    steps = np.diff(ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-6)
    assert all(len(f"{tick:g}") <= 7 for tick in ticks)


def test_intervals_that_are_not_known_are_not_drawn():
    none = np.array([np.nan])
    known = intervals(["G"], np.array([1.0]), np.array([0.5]), np.array([1.5]), np.array([0.9]), alt="x", x_label="x")
    unknown = intervals(["G"], np.array([1.0]), none, none, none, alt="x", x_label="x")
    assert "interval +0.50 to +1.50; the simple rule +0.90" in known and "<rect" in known
    assert "interval" not in unknown and "<rect" not in unknown and "nan" not in unknown


def test_names_do_not_lie_on_each_other():
    one = [Points("g", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#000")]
    text = scatter(one, alt="x", x_label="x", y_label="y", names=[(1.0, 1.0, "FIRST"), (1.0, 1.0, "SECOND"), (0.0, 0.0, "THIRD")])
    assert "FIRST" in text and "THIRD" in text and "SECOND" not in text


def test_a_plate_has_96_wells_and_the_first_is_darkest():
    text = plate([("A1", "first", 1.0), ("A2", "second", 0.0)], alt="x")
    assert text.count('r="15"') == 98 and text.index("first") < text.index("second")
    opacity = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', text)]
    assert opacity == [0.98, 0.08]
