"""Signatures: what is asked for, what is not there, and how far an effect goes."""

import warnings

import numpy as np
import pytest

from counterflow import ConfigError, CounterflowWarning, DataError
from counterflow.effects.signatures import gene_weights, pasted_genes, signature_of

GENES = ("KLF1", "HBG1", "HBG2", "GATA1")


def test_toward_is_the_mean_change_in_the_wanted_direction():
    one = signature_of(gene_weights(["HBG1", "HBG2"], ["GATA1"]), GENES)
    assert one.toward(np.array([5.0, 1.0, 0.5, -0.6])) == pytest.approx((1.0 + 0.5 + 0.6) / 3)
    assert one.toward(np.eye(4)) == pytest.approx([0, 1 / 3, 1 / 3, -1 / 3])


def test_alignment_is_one_where_nothing_else_moves_and_zero_where_nothing_does():
    one = signature_of({"HBG1": 2.0, "HBG2": -1.0}, GENES)
    effects = np.array([[0, 4.0, -2.0, 0], [0, -4.0, 2.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 0]])
    assert one.alignment(effects) == pytest.approx([1, -1, 0, 0])


def test_unknown_genes_are_left_out_and_named():
    with pytest.warns(CounterflowWarning, match=r"1 of the 2 genes .* are left out \('HBG3': did you mean 'HBG"):
        one = signature_of({"HBG3": 1.0, "KLF1": 1.0}, GENES)
    assert one.left_out == ("HBG3",) and one.weight.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "empty"),
        ({"HBG3": 1.0, "X": -1.0}, "2 of the 2 genes .* did you mean 'HBG"),
        ({"KLF1": float("nan")}, "no finite weight for 1 genes .*'KLF1'"),
        ({"KLF1": 0.0}, "weight 0"),
    ],
)
def test_signatures_that_cannot_be_asked_for(weights, words):
    with warnings.catch_warnings(), pytest.raises(DataError, match=words):
        warnings.simplefilter("error")
        signature_of(weights, GENES)


def test_a_gene_cannot_rise_and_fall():
    with pytest.raises(ConfigError, match="both rise and fall .*'HBG1'"):
        gene_weights(["KLF1", "HBG1"], ["HBG1"])


def test_lists_are_read_however_they_were_copied():
    assert pasted_genes("\"HBG1\", 'HBG2'\n KLF1;GATA1\t\n") == ["HBG1", "HBG2", "KLF1", "GATA1"]
    assert pasted_genes("  \n") == []
