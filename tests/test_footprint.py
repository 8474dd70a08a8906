"""What a fit is expected to need, and the refusal of what does not fit."""

from __future__ import annotations

import pytest

import counterflow as cf
from counterflow import footprint as told
from counterflow.footprint import check_memory, footprint, free_memory


@pytest.mark.parametrize(  # peak of the process in GB, as measured (docs/decisions.md)
    ("cells", "genes", "values", "space", "weights", "measured"),
    [
        (2_000, 500, 0.07e6, "pca", 0.4e6, 0.65), (20_000, 2_000, 2.8e6, "pca", 0.6e6, 0.88), (20_000, 8_000, 11.2e6, "pca", 1.4e6, 1.50),
        (100_000, 2_000, 14.0e6, "pca", 0.6e6, 1.76), (2_000, 8_000, 1.1e6, "raw", 3.4e6, 1.06),
    ],
)  # fmt: skip
def test_the_estimate_is_near_what_was_measured(cells, genes, values, space, weights, measured):
    size = 50 if space == "pca" else genes
    found = footprint(cells, genes, int(values), space=space, state_size=size, n_weights=int(weights)).total / 1e9
    assert 0.85 * measured < found < 1.5 * measured


def test_what_does_not_fit_is_refused_with_the_number(declared, monkeypatch):
    model = cf.CounterFlow(declared, anchor="none")
    check_memory(model.memory_needed(), None)
    with pytest.raises(cf.ConfigError, match=r"needs about .* GB .*0\.5 GB are memory_limit"):
        model.train(max_steps=1, memory_limit=0.5, progress=False)
    monkeypatch.setattr(told, "free_memory", lambda: 10**8)
    with pytest.raises(cf.ConfigError, match=r"0\.1 GB are free here"):
        model.train(max_steps=1, progress=False)
    assert not model.is_trained
    model.train(max_steps=1, memory_limit=100, progress=False)  # the user knows better
    monkeypatch.setattr(told, "free_memory", lambda: None)
    check_memory(model.memory_needed(), None)


def test_more_of_anything_needs_more():
    base = {"n_cells": 1000, "n_genes": 1000, "n_values": 10**5, "state_size": 50}
    least = footprint(**base, space="pca").total
    for name in ("n_cells", "n_genes", "n_values"):
        assert footprint(**base | {name: base[name] * 100}, space="pca").total > least
    assert footprint(**base, space="pca", n_weights=10**9).total > least


def test_free_memory_is_a_number_of_bytes_where_the_system_says():
    free = free_memory()
    assert free is None or 2**26 < free < 2**50
