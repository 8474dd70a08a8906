"""Measured differences are printed at the end of a run, whatever the verbosity: `pytest -m parity`."""

import pytest

ROWS = pytest.StashKey()


@pytest.fixture
def within(request):
    """`within(what, measured, tolerance)` notes the difference for the table, and asserts it."""

    def within(what, measured, tolerance):
        request.config.stash.setdefault(ROWS, []).append((what, measured, tolerance))
        assert measured <= tolerance, f"{what}: {measured:.2g} > {tolerance:.0e}"

    return within


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("measured differences")
        width = max(len(what) for what, _, _ in rows)
        for what, measured, tolerance in rows:
            verdict = "" if measured <= tolerance else "  FAILS"
            terminalreporter.write_line(f"{what:<{width}}  {measured:<8.3g} tolerated {tolerance:g}{verdict}")
