"""Write the tables of docs/parity.md from benchmarks/results/parity.json and conditioning_overhead.json.

python benchmarks/parity_doc.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs" / "parity.md", ROOT / "benchmarks" / "results"
TITLES = {
    "adaln": "AdaLN-Zero (`adaln`)",
    "adaln_plain": "AdaLN without gates (`adaln_plain`)",
    "cross": "cross-attention (`cross`)",
    "cross_layerscale": "the same with LayerScale (`cross_layerscale`)",
    "in_context": "in context (`in_context`)",
}


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def parity() -> list[str]:
    found = results("parity")
    lines = ["Versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + "."]
    for section, rows in found["sections"].items():
        lines += ["", f"| {section} | measured | tolerated |", "|---|---|---|"]
        lines += [f"| {row['what']} | {row['measured']:.3g} | {row['tolerance']:g} |" for row in rows]
    return lines


def overhead() -> list[str]:
    found = results("conditioning_overhead")
    base = found["rows"][0]
    lines = [
        "One latent of 4 x 32 x 32, patches of 2; overheads over AdaLN-Zero in brackets. The paper is arXiv 2212.09748."
        f" CPU time per image of S/2, batch 4, {found['threads']} thread ({found['machine']}), quickest of {found['rounds']} rounds.",
        "",
        "| | XL/2 parameters (M) | the paper | XL/2 GMAC | the paper | S/2 forward (s) | S/2 forward and backward (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        parts = [f"{row['XL/2']['parameters'] / 1e6:.1f}{_over(row, base, 'XL/2', 'parameters')}"]
        parts += [f"{row['paper']['million_parameters']}{_over(row, base, 'paper', 'million_parameters')}" if row["paper"] else ""]
        parts += [f"{row['XL/2']['gmac']:.2f}{_over(row, base, 'XL/2', 'gmac')}"]
        parts += [f"{row['paper']['gmac']:.2f}{_over(row, base, 'paper', 'gmac')}" if row["paper"] else ""]
        for what in ("forward", "step"):
            seconds, base_seconds = (one["S/2"]["seconds"][what] for one in (row, base))
            parts += [f"{seconds:.3f}{_percent(seconds, base_seconds)}"]
        lines.append(f"| {TITLES[row['conditioning']]} | " + " | ".join(parts) + " |")
    return lines


def _over(row: dict[str, Any], base: dict[str, Any], group: str, what: str) -> str:
    return _percent(row[group][what], base[group][what])


def _percent(value: float, base: float) -> str:
    return "" if value == base else f" ({value / base - 1:+.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the document is out of date")
    options = parser.parse_args()
    text = new = DOC.read_text(encoding="utf-8")
    for name, table in (("parity", parity()), ("overhead", overhead())):
        begin, end = f"<!-- {name}: written by benchmarks/parity_doc.py -->", f"<!-- end of {name} -->"
        before, rest = new.split(begin)
        new = before + "\n".join([begin, *table, end]) + rest.split(end)[1]
    if options.check:
        return int(new != text)
    DOC.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
