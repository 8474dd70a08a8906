"""A share of `benchmarks/fuzz.py`: damaged and forged files end in an error of ours, never in a crash, a hang or another exception."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz")


def check(fuzz, area: str, share: float, seed: int) -> None:
    module = importlib.import_module(fuzz.AREAS[area][0])
    found = fuzz.run([area], share, seed, jobs=1)
    bad = fuzz.faults(found, but=module.KNOWN)
    assert not bad, "\n".join(bad)
    total = sum(len(cases) for cases in found[area].values())
    assert total == round(fuzz.AREAS[area][1] * share)
    assert sum(outcome == "refused" for cases in found[area].values() for outcome, _ in cases) > 0.4 * total


@pytest.mark.parametrize(("area", "share"), [("h5ad", 0.015), ("models", 0.02), ("texts", 0.1)])
def test_a_few_damaged_files(fuzz, area, share):
    check(fuzz, area, share, seed=100)


@pytest.mark.slow
@pytest.mark.parametrize("area", ["h5ad", "models", "texts"])
def test_a_tenth_of_the_damaged_files(fuzz, area):
    check(fuzz, area, 0.1, seed=101)


def test_what_a_case_does_to_its_process_is_counted(fuzz, monkeypatch, tmp_path):
    """The judge itself: a crash, a hang, an exception of others and a silent change are told apart."""
    module = importlib.import_module("fuzz_texts")
    ends = {
        "crash": "import os; os.kill(os.getpid(), 11)",
        "hang": "import time; time.sleep(60)",
        "foreign": "raise KeyError('x')",
        "refused": "from counterflow import DataError; raise DataError('x')",
        "silent": "",
        "unchanged": "",
    }
    monkeypatch.setattr(fuzz, "PATIENCE", 0.5)
    monkeypatch.setattr(module, "FREE_TO_DIFFER", frozenset())
    monkeypatch.setattr(module, "mutate", lambda kind, rng, base, scratch: (kind, "same"))
    monkeypatch.setattr(module, "attempt", lambda kind: exec(ends[kind]) or ("same" if kind == "unchanged" else "other"))
    worker = fuzz.Worker(tmp_path, {"texts": {"same": "same"}})
    try:
        for expected in ends:
            assert worker.do(("texts", expected, 0, 0))[0] == expected
    finally:
        worker.stop()
    found = {"texts": {kind: [(kind, "")] for kind in ends}}
    assert len(fuzz.faults(found)) == 4 and len(fuzz.faults(found, but=frozenset({("silent", "si")}))) == 3
    assert sys.modules["fuzz_texts"] is module
