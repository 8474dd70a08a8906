"""No constructed cheat beats the honest predictor on the headline set taken together, and the verdict names each cheat."""

import numpy as np
import pytest

from counterflow.evaluate.table import badness
from counterflow.evaluate.verdict import faults

FAMILIES = (("pearson_delta_pertref", "pds_cosine"), ("mse", "wmse"), ("energy",), ("c2st_gene",))
NAMED = {
    "tile": "COLLAPSED",
    "generic": "ONE GENERIC RESPONSE",
    "shuffled": "NOT TELL CONDITIONS APART",
    "times3": "TOO LARGE",
    "times0.3": "TOO SMALL",
    "variance2": "TOO SPREAD OUT",
    "unchanged": "NO EFFECT",
}


def mean_of(table, method, metric):
    return float(badness(metric, np.array([table.per_condition(metric)[method].mean()]))[0])


@pytest.mark.parametrize("cheat", NAMED)
def test_every_cheat_is_rejected_by_some_family_and_wins_none_clearly(table, cheat):
    """Rejected: in some family the honest one is better on every condition that matters, by more than a tenth of baseline to ceiling."""
    gains = {}
    for family in FAMILIES:
        scale = [abs(mean_of(table, "mean", m) - mean_of(table, "split_half", m)) for m in family]
        gains[family] = max((mean_of(table, cheat, m) - mean_of(table, "honest", m)) / s for m, s in zip(family, scale, strict=True))
    assert max(gains.values()) > 0.25, gains  # the honest one is clearly ahead somewhere
    assert min(gains.values()) > -0.1, gains  # and clearly behind nowhere
    assert sum(gains.values()) > 0.5, gains


@pytest.mark.parametrize("cheat", NAMED)
def test_the_verdict_names_the_cheat(table, cheat):
    assert NAMED[cheat] in table.verdict(cheat)


def test_the_honest_predictor_is_accused_of_nothing(table):
    assert faults(table, "honest") == []
    assert faults(table, "split_half") == []


def test_no_single_metric_sees_through_all_cheats(table):
    """Why the set is needed: means are blind to a tile, ranks to the scale."""
    assert mean_of(table, "tile", "pds_cosine") == pytest.approx(mean_of(table, "honest", "pds_cosine"), abs=0.02)
    assert mean_of(table, "tile", "mse") == pytest.approx(mean_of(table, "honest", "mse"), rel=0.05)
    assert mean_of(table, "times3", "pearson_delta") < mean_of(table, "mean", "pearson_delta")
    assert mean_of(table, "variance2", "pearson_delta") == pytest.approx(mean_of(table, "honest", "pearson_delta"), abs=0.02)


def test_floor_and_generic_response_have_their_known_scores(table):
    assert table.per_condition("pearson_delta")["control"].to_numpy() == pytest.approx(0, abs=1e-6)
    assert table.per_condition("pds_cosine")["control"].to_numpy() == pytest.approx(0.5)
    assert table.per_condition("pearson_delta_pertref")["mean"].abs().mean() < 0.15
    assert np.nanmean(table.per_condition("c2st_gene")["tile"]) > 0.95
