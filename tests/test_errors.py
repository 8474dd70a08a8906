"""What a notebook shows of an error: the message, and the user's own line."""

import pytest

import counterflow as cf
from counterflow.errors import CounterflowError

CELL = """import counterflow as cf
screen = cf.read_h5ad("nowhere.h5ad")
"""


@pytest.fixture(scope="module")
def shell():
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    return interactive.InteractiveShell.instance()


def test_one_clear_message(shell, capsys):
    result = shell.run_cell(CELL)
    said = "".join(capsys.readouterr())
    assert isinstance(result.error_in_exec, cf.DataError)
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines[0].startswith("DataError: 'nowhere.h5ad' does not exist")
    assert lines[1:] == ['in line 2: screen = cf.read_h5ad("nowhere.h5ad")']


def test_other_errors_are_shown_as_ever(shell, capsys):
    shell.run_cell("1 / 0")
    assert "Traceback" in "".join(capsys.readouterr())


def test_an_error_that_was_never_raised_has_a_message_too():
    assert CounterflowError("no data")._render_traceback_() == ["CounterflowError: no data"]
