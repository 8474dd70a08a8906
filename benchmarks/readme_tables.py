"""Write the README's result tables from ``benchmarks/results/*.json``: between the markers, and nowhere else.

python benchmarks/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by benchmarks/readme_tables.py -->", "<!-- end of results -->"
METHODS = ("control", "mean", "additive", "counterflow", "split_half")
STRATA = {
    ("norman", "combo_seen2"): "Norman, held-out pairs, both parts seen",
    ("norman", "combo_seen1"): "Norman, one part seen",
    ("norman", "combo_seen0"): "Norman, no part seen",
    ("kang", None): "Kang, each of seven cell types held out",
    ("a549", None): "A549, 1 h held out between 0 and 3 h",
}


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def simulated() -> list[str]:
    rows = results("simulated_truth")["rows"]
    table = pd.DataFrame([{"interaction": r["interaction"], "cells": r["cells_per_condition"], **r["rmse"]} for r in rows])
    shown = ["control", "mean", "additive", "additive+ct", "additive log rates", "counterflow"]
    lines = [
        "Simulated screen, error to the *true* counterfactual mean of hidden pairs (RMSE over genes of log1p expression, lower is better;"
        f" mean ± standard deviation over {table.groupby(['interaction', 'cells']).size().min()} seeds; `benchmarks/simulated_truth.py`):",
        "",
        "| interactions | cells per condition | " + " | ".join(shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for (interaction, cells), part in table.groupby(["interaction", "cells"], sort=False):
        values = " | ".join(f"{part[name].mean():.3f} ± {part[name].std():.3f}" for name in shown)
        lines.append(f"| {'on' if interaction else 'off'} | {cells} | {values} |")
    return lines


def real() -> list[str]:
    lines = [
        "Real screens, the default recipe, `pearson_delta` (correlation of predicted and real mean effect, higher is better) and `energy`"
        " (distance of predicted and real cells, lower is better), scored against one random half of the real cells"
        " (mean ± standard deviation over seeds; `split_half`: the other half, the ceiling; `benchmarks/real_data.py`):",
        "",
        "| data | metric | " + " | ".join(METHODS) + " |",
        "|---|---|" + "---|" * len(METHODS),
    ]
    for (data, stratum), title in STRATA.items():
        table = pd.DataFrame(results(f"real_{data}")["summary"])
        if stratum is not None:
            table = table[table["stratum"] == stratum]
        for metric in ("pearson_delta", "energy"):
            values = table[table["metric"] == metric].set_index("method")
            cells = [_value(values.loc[method]) if method in values.index else "" for method in METHODS]
            lines.append(f"| {title} | {metric} | " + " | ".join(cells) + " |")
    return lines


def _value(row: pd.Series) -> str:
    spread = f" ± {row['std']:.3f}" if pd.notna(row["std"]) else ""
    return f"{row['mean']:.3f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is out of date")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = before + "\n".join([BEGIN, *simulated(), "", *real(), END]) + after
    if options.check:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
