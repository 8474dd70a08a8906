"""Write the README's result tables, and ``docs/comparison.md``, from ``benchmarks/results/*.json``: in the README between the markers only.

python benchmarks/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from accuracy_doc import TITLES

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by benchmarks/readme_tables.py -->", "<!-- end of results -->"
REAL = ("kang", "donors", "norman_both_seen", "norman_one_seen", "norman_single", "a549_1h", "a549_3h", "schraivogel", "mcfaline")


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def simulated() -> list[str]:
    rows = results("simulated_truth")["rows"]
    table = pd.DataFrame([{"interaction": r["interaction"], "cells": r["cells_per_condition"], **r["rmse"]} for r in rows])
    shown = ["control", "mean", "additive", "additive+ct", "additive log rates", "counterflow"]
    lines = [
        "Simulated screen, error to the *true* counterfactual mean of hidden pairs (RMSE over genes of log1p expression, lower is better;"
        f" mean ± standard deviation over {table.groupby(['interaction', 'cells']).size().min()} seeds; `benchmarks/simulated_truth.py`;"
        " of the recipe before the two estimators of a mean were mixed: for that, `benchmarks/results/search.md` has other screens):",
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
        "Real screens, the default recipe (no options), `pearson_delta` (correlation of predicted and real mean effect, higher is better)"
        " and `energy` (distance of predicted and real cells, lower is better), scored against one random half of the real cells; three"
        " training seeds. *Best simple rule* is chosen afterwards, for each number, among all that apply. More metrics, intervals, costs,"
        " and what was aimed at: [docs/accuracy.md](docs/accuracy.md).",
        "",
        "| held out | metric | no change | best simple rule | counterflow | the other half of the real cells |",
        "|---|---|---|---|---|---|",
    ]
    for task in (task for task in REAL if (ROOT / "benchmarks" / "results" / "accuracy" / f"{task}.json").exists()):
        table = pd.DataFrame(results(f"accuracy/{task}")["summary"])
        for metric in ("pearson_delta", "energy"):
            values = table[table["metric"] == metric].set_index("method")
            rules = values[(values["kind"] == "baseline") & (values.index != "control")]["value"]
            best = rules.idxmax() if metric == "pearson_delta" else rules.idxmin()
            own = values[values.index.str.startswith("counterflow")]["value"]
            numbers = f"{values.loc['control', 'value']:.3f} | {rules[best]:.3f} {best} | **{own.mean():.3f}** ± {own.std():.3f}"
            lines.append(f"| {TITLES[task]} | {metric} | {numbers} | {values.loc['split_half', 'value']:.3f} |")
    return lines


COMPARED = {
    "norman": "Norman, half of the pairs held out (K562, gene activation)",
    "kang": "Kang, natural killer cells held out (interferon beta; 1,000 most variable genes)",
    "a549": "A549, 1 h held out between 0 and 3 h (dexamethasone)",
    "schraivogel": "Schraivogel, one of two batches held out (K562, gene repression; 200 cells per condition and batch)",
    "mcfaline": "McFaline, A172 held out: the negative control, where next to nothing reproduces",
}
SCOPE = (
    "All made before sampling took five midpoint steps (euler in 20 then), one training each: "
    "four backbones in `pca`, the MLP in `raw` too (at this budget the others have 5 to 40"
    " steps there), and for Kang in `latent`, where the autoencoder alone uses the budget up. A549 has no `raw` row."
)
QUESTIONS = ("pearson_delta", "pds_cosine", "mse", "energy", "c2st_gene")


def compared(name: str, *, every_baseline: bool) -> list[str]:
    """Floor, baselines, models and ceiling of one data set, in that order; S in brackets."""
    content = results(f"compare_{name}")
    table = pd.DataFrame(content["summary"])
    metrics = [metric for metric in QUESTIONS if metric in set(table["metric"])]
    wide = table.set_index(["method", "metric"])
    best = {row["metric"]: row["method"] for row in content["summary"] if row["best_baseline"]}
    models = [method for method in dict.fromkeys(table["method"]) if (table.set_index("method").loc[[method], "kind"] == "model").all()]
    baselines = [method for method in dict.fromkeys(table["method"]) if method not in models and "split_half" != method != "replicate"]
    lines = ["| method | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]

    def row(title: str, methods: list[str], *, named: bool = False) -> str:
        cells = []
        for metric, method in zip(metrics, methods, strict=True):
            found = wide.loc[(method, metric)] if (method, metric) in wide.index else None
            if found is None or pd.isna(found["value"]):
                cells.append("n/a")
                continue
            text = f"{found['value']:.3f}" + (f" ({found['S']:.2f})" if pd.notna(found["S"]) else "")
            cells.append(f"{text} {method}" if named else text)
        return f"| {title} | " + " | ".join(cells) + " |"

    shown = baselines if every_baseline else ["control", "mean"]
    lines += [row(method, [method] * len(metrics)) for method in shown]
    lines += [] if every_baseline else [row("best simple rule", [best.get(metric, "mean") for metric in metrics], named=True)]
    lines += [row(f"**{method}**", [method] * len(metrics)) for method in models]
    lines += [row(method, [method] * len(metrics)) for method in ("split_half", *(["replicate"] if every_baseline else []))]
    return lines


def backbones() -> list[str]:
    lines = [
        f"({SCOPE})",
        "",
        "Four backbones, one budget, between *no change*, the best simple rule for each metric and the ceiling (`benchmarks/compare.py`;"
        " S in brackets: 0 = one generic response, 1 = repeating the experiment). All baselines, costs and verdicts in words:"
        " [docs/comparison.md](docs/comparison.md); what such a report looks like (two models, 10 processor seconds each):"
        " [docs/report_norman.html](docs/report_norman.html).",
    ]
    for name, title in COMPARED.items():
        content = results(f"compare_{name}")
        lines += ["", f"{title}; {content['notes'][0].split('. Unknown')[0].lower()}:", "", *compared(name, every_baseline=False)]
    return lines


def comparison() -> str:
    """The text of ``docs/comparison.md``."""
    lines = [
        "# Comparisons on real screens",
        "",
        "Written by `benchmarks/readme_tables.py` from `benchmarks/results/compare_*.json`. S in brackets: 0 = the `mean` baseline, 1 =",
        "the split-half ceiling. `+ct`: the mean of a rule, decoded by count transport. As they came out, good or bad.",
        "",
        SCOPE,
    ]
    for name, title in COMPARED.items():
        content = results(f"compare_{name}")
        costs = pd.DataFrame(content["costs"])
        lines += ["", f"## {title}", "", *(f"- {note}" for note in content["notes"])]
        lines += [f"- Self-test of the scoring PCA: {test}." for test in map(_self_test, content["self_test"].values())]
        lines += ["", *compared(name, every_baseline=True), "", "Costs:", ""]
        lines += ["| " + " | ".join(costs) + " |", "|---" * costs.shape[1] + "|"]
        lines += ["| " + " | ".join(map(str, values)) + " |" for values in costs.itertuples(index=False)]
        lines += ["", "Verdicts:", "", *(f"- **{model}**: {text}" for model, text in content["verdicts"].items())]
    return "\n".join(lines) + "\n"


def _self_test(values: dict[str, float]) -> str:
    return f"energy {values['energy']:.3f} (should be < .05), coverage {values['coverage']:.2f} (should be > .9)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is out of date")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = before + "\n".join([BEGIN, *simulated(), "", *real(), "", *backbones(), END]) + after
    page = ROOT / "docs" / "comparison.md"
    if options.check:
        return int(new != text or not page.is_file() or page.read_text(encoding="utf-8") != comparison())
    readme.write_text(new, encoding="utf-8")
    page.write_text(comparison(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
