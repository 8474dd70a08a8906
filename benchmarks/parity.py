"""Every measured difference to an independent implementation, as one table.

    python benchmarks/parity.py [--only image] [--out benchmarks/results/parity.json]

Needs the extra `parity`. A section is a file `parity_<section>.py` beside this one, with a function `<section>()` that yields rows
(what, measured, tolerance). Writes the rows and the versions; exits with 1 if a row is beyond its tolerance.
`benchmarks/parity_doc.py` makes docs/parity.md of them.
"""

import argparse
import importlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

HERE = Path(__file__).parent
SECTIONS = sorted(file.stem.removeprefix("parity_") for file in HERE.glob("parity_*.py") if file.stem != "parity_doc")
PACKAGES = ("torch", "diffusers", "transformers", "mambapy")


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def measure(section: str) -> list[dict[str, str | float]]:
    """Run one section and print its rows as they come."""
    print(section)
    rows = []
    for what, measured, tolerance in getattr(importlib.import_module(f"parity_{section}"), section)():
        print(f"  {what:<100} {measured:<8.3g}  (tolerated {tolerance:g})" + ("" if measured <= tolerance else "  FAILS"), flush=True)
        rows.append({"what": what, "measured": float(measured), "tolerance": tolerance})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SECTIONS, action="append", help="sections to run again; the others are kept as they are")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "parity.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections = json.loads(options.out.read_text(encoding="utf-8"))["sections"] if options.only and options.out.exists() else {}
    sections |= {section: measure(section) for section in options.only or SECTIONS}
    result = {"versions": versions(), "sections": dict(sorted(sections.items()))}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["measured"] <= row["tolerance"] for rows in sections.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
