"""Recipes in the shape of published engines, on two screens: `benchmarks/results/recipes.md` and the table in README.

    python benchmarks/recipes_doc.py [--norman COMPARISON] [--kang COMPARISON]

With the folders that `counterflow compare` wrote, their figures are taken into `benchmarks/results/recipes_*.json` first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- recipes -->\n", "<!-- end of recipes -->"
METRICS = {"pearson_delta": "pearson", "energy": "energy", "pds_cosine": "pds", "c2st_gene": "c2st"}
COSTS = {
    "train_cpu_s": "fit, processor s",
    "parameters": "parameters",
    "peak_memory_mb": "peak MB",
    "function_evaluations": "evaluations",
}
SCREENS = {
    "norman": "Norman, eight held-out combinations",
    "kang": "Kang, NK cells held out (1,000 genes; one condition, so no ranks; `scdfm` was stopped after a quarter of an hour)",
}
RULES = {"norman": ("control", "additive", "additive+ct"), "kang": ("control", "quantile_map", "qmap_top2")}
_LIST = ",".join(["mlp/pca", *(f"configs/recipes/{name}.yaml" for name in ("cellflow", "genot", "scgen", "cfgen", "scldm", "scdfm"))])
COMMANDS = f"""counterflow compare norman2019_k562_crispra.h5ad --setup.perturbation_key perturbation --setup.control control \\
  --setup.library_size_key n_counts_full --split unseen_combination --budget.steps 200 --out norman --models {_LIST}
counterflow compare kang2018_pbmc_ifnb.h5ad --setup.perturbation_key perturbation --setup.control control \\
  --setup.library_size_key n_counts_full --setup.match_keys cell_type --setup.covariate_keys cell_type \\
  --split unseen_context --held_out NK --model.n_top_genes 1000 --budget.steps 200 --out kang --models {_LIST.rsplit(",", 1)[0]}"""


def taken(folder: Path) -> dict:
    """What is kept of a comparison."""
    whole = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = [{key: row[key] for key in ("method", "metric", "value", "kind")} for row in whole["summary"] if row["metric"] in METRICS]
    return {"costs": whole["costs"], "summary": rows, "notes": [note for note in whole["notes"] if ": like " in note]}


def table(kept: dict, rules: tuple[str, ...]) -> list[str]:
    """Scores and costs of every recipe, the simple rules, and the ceiling."""
    values = {(row["method"], row["metric"]): row["value"] for row in kept["summary"]}
    costs = {row["method"]: row for row in kept["costs"]}
    head = ["method", *METRICS.values(), *COSTS.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in (*costs, *rules, "split_half"):
        scores = [values.get((method, metric)) for metric in METRICS]
        cells = [method, *("n/a" if one is None or one != one else f"{one:.3f}" for one in scores)]
        cost = costs.get(method)
        cells += (
            [f"{cost['train_cpu_s']:.0f}", f"{cost['parameters']:,}", f"{cost['peak_memory_mb']:,}", str(cost["function_evaluations"])]
            if cost
            else [""] * 4
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def found() -> dict[str, dict]:
    """Screens with stored figures."""
    return {name: json.loads(path.read_text(encoding="utf-8")) for name in SCREENS if (path := RESULTS / f"recipes_{name}.json").exists()}


def tables() -> str:
    """One table for each screen."""
    lines = []
    for name, kept in found().items():
        lines += [f"{SCREENS[name]}:", "", *table(kept, RULES[name]), ""]
    return "\n".join(lines)


def page() -> str:
    """`recipes.md`."""
    notes = next(iter(found().values()))["notes"]
    lines = ["# Recipes", "", "Made by `python benchmarks/recipes_doc.py` from:", "", "```", COMMANDS, "```", ""]
    lines += [
        "Recipes have the shape of published engines on our parts; they are not those tools, and these are not their scores.",
        "200 optimiser steps each, one seed, other jobs on the machine; autoencoders are trained besides (their seconds count).",
        "Differences of a few hundredths are noise. `mlp/pca` is the default: means from measured effects, and a learnt trust in the flow.",
        "200 steps are few for what starts at noise.",
        "",
    ]
    return "\n".join([*lines, tables(), *(f"- {note}" for note in notes), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SCREENS:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something would change")
    options = parser.parse_args()
    for name in SCREENS:
        if (folder := getattr(options, name)) is not None:
            (RESULTS / f"recipes_{name}.json").write_text(json.dumps(taken(folder), indent=1) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    pages = {RESULTS / "recipes.md": page(), readme: before + START + "\n" + tables() + "\n" + END + rest.split(END)[1]}
    changed = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    for path in [] if options.check else changed:
        path.write_text(pages[path], encoding="utf-8")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
