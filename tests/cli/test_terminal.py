"""What moves while one waits."""

import io
from contextlib import redirect_stderr

import pytest

from counterflow.cli import main
from counterflow.cli.terminal import Countdown, Terminal
from counterflow.data.progress import tracked, without_bars


def test_the_time_left_is_that_of_the_rest():
    now, said = [0.0], []
    count = Countdown(said.append, lambda: now[0])
    for k in range(1, 5):
        count(f"scoring {k} of 4: KLF1")
        now[0] += 10
    assert said == ["scoring 1 of 4: KLF1", *(f"scoring {k} of 4: KLF1, about {10 * (5 - k)} s left" for k in (2, 3, 4))]


def test_long_waits_are_in_minutes():
    now, said = [0.0], []
    count = Countdown(said.append, lambda: now[0])
    count("1 of 10")
    now[0] = 60
    count("2 of 10")
    assert said[-1] == "2 of 10, about 9 min left"


def test_nothing_moves_in_a_file(capsys):
    with Terminal().working("scoring") as watch:
        watch("scoring 2 of 3")
    assert capsys.readouterr() == ("", "")


class Screen(io.StringIO):
    """Somebody watches."""

    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_bars_are_for_who_watches_and_not_where_they_are_not_wanted(watched):
    with redirect_stderr(watched):
        assert list(tracked("ab", "converting", [1, 1])) == ["a", "b"]
        assert "converting" in watched.getvalue()
        watched.truncate(0)
        with without_bars():
            assert list(tracked("ab", "converting", [1, 1])) == ["a", "b"]
    assert "converting" not in watched.getvalue()


@pytest.mark.parametrize(("option", "shown"), [("--quiet", False), ("--json", False), ("--verbose", True)])
def test_quiet_verbs_show_no_bars(watched, monkeypatch, option, shown):
    monkeypatch.setattr("counterflow.cli.doctor.run", lambda argv: list(tracked("a", "looking", [1])))
    with redirect_stderr(watched):
        assert main(["doctor", "x.h5ad", option]) == 0
    assert ("looking" in watched.getvalue()) == shown
