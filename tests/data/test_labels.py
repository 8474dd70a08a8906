import pytest

from counterflow.data.labels import canonical, is_control, parts


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("A", ("A",)),
        ("B+A", ("A", "B")),
        (" B + A ", ("A", "B")),
        ("A+control", ("A",)),
        ("control+A", ("A",)),
        ("control", ()),
        (" control ", ()),
        ("control+control", ()),
        ("A+A", ("A", "A")),
        ("C+A+B", ("A", "B", "C")),
        ("A+", ("A",)),
    ],
)
def test_parts(label, expected):
    assert parts(label) == expected


def test_canonical_is_idempotent_and_keeps_the_delimiter():
    assert canonical("B|A", delimiter="|") == "A|B"
    for label in ["B+A", "A+control", "control", "A+A", " x "]:
        assert canonical(canonical(label)) == canonical(label)
    assert canonical("A+A") != canonical("A")


def test_a_control_label_may_contain_the_delimiter():
    assert is_control("ctrl+ctrl", "ctrl+ctrl")
    assert parts("ctrl+ctrl", control="ctrl+ctrl") == ()
    assert canonical("ctrl+ctrl", control="ctrl+ctrl") == "ctrl+ctrl"


def test_a_name_that_merely_contains_the_control_is_not_the_control():
    assert not is_control("controlled")
    assert parts("controlled+A") == ("A", "controlled")
