"""The table of speed says what was measured, and what was not."""

import importlib.util
import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load():
    spec = importlib.util.spec_from_file_location("speed_doc", BENCHMARKS / "speed_doc.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed_doc"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_script_writes():
    assert (BENCHMARKS / "results" / "speed.md").read_text(encoding="utf-8") == load().page()


def test_a_goal_is_met_missed_or_not_measured_by_its_figures():
    doc = load()
    stored = json.loads((BENCHMARKS / "results" / "speed.json").read_text(encoding="utf-8"))
    figures = doc.Figures(stored)
    rows = {what: (seen, goal) for what, _, seen, goal, _ in doc.goals(figures, {})}
    ours, theirs = figures("train: fit ot 32-true"), figures("train: cellflow small")
    assert rows["training, coupling included, fp32 : CellFlow"] == (ours / theirs, 0.95)
    nothing = {what: seen for what, _, seen, _, _ in doc.goals(doc.Figures({"figures": {}}), {})}
    assert all(seen != seen for seen in nothing.values())  # NaN everywhere: nothing is made up
