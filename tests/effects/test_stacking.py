"""How much of another estimator: what left-out conditions say, and nothing where they disagree."""

import numpy as np
import pytest

from counterflow.effects.stacking import FEWEST, learnt_weight


def units(rng, n, share, noise):
    """The other estimator sees `share` of what the base missed, up to noise."""
    beyond = rng.normal(size=(n, 50))
    return list(share * beyond + rng.normal(0, noise, beyond.shape)), list(beyond)


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_the_share_that_is_right_is_found(share):
    assert learnt_weight(*units(np.random.default_rng(0), 20, share, 0.1)) == pytest.approx(share, abs=0.03)


def test_it_stays_between_none_and_all():
    rng = np.random.default_rng(0)
    assert learnt_weight(*units(rng, 10, -0.5, 0.1)) == 0.0
    assert learnt_weight(*units(rng, 10, 1.7, 0.1)) == 1.0


def test_conditions_that_disagree_say_nothing():
    rng = np.random.default_rng(0)
    missed, beyond = units(rng, 6, 1.0, 0.0)
    assert learnt_weight([m * sign for m, sign in zip(missed, (2, -2, 2, -2, 2, -1.5), strict=True)], beyond) == 0.0


def test_too_few_say_nothing():
    missed, beyond = units(np.random.default_rng(0), FEWEST, 0.5, 0.0)
    assert learnt_weight(missed, beyond) == pytest.approx(0.5)
    assert learnt_weight(missed[1:], beyond[1:]) == 0.0
    assert learnt_weight([np.ones(3)] * 4, [np.zeros(3)] * 4) == 0.0
