import pytest

from counterflow.errors import ConfigError
from counterflow.flow.choose import choose
from counterflow.flow.solvers import SOLVERS, rk4


def test_a_name_or_the_object_itself():
    assert choose("rk4", SOLVERS, "solver") is rk4
    own = lambda velocity, x, ts: x  # noqa: E731
    assert choose(own, SOLVERS, "solver") is own


def test_a_misspelt_name_gets_its_near_match():
    with pytest.raises(ConfigError, match="unknown solver 'eulr': did you mean 'euler'"):
        choose("eulr", SOLVERS, "solver")
