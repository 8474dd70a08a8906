"""Write the tables of docs/image.md from benchmarks/results/image_digits.json and image_digits_large_lr.json.

python benchmarks/image_doc.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "image.md"
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = {"digits": "image_digits", "large lr": "image_digits_large_lr"}
GOAL, GOAL_STEPS, GOAL_MINUTES = 0.95, 20, 10.0


def tables(found: dict[str, Any]) -> list[str]:
    """The goal, what training cost, and one table per guidance."""
    images, trained, config = found["images"], found["training"], found["config"]
    options = config["train"]
    minutes = [f"{trained[name]['processor_seconds'] / 60:.1f}" for name in ("flow", "ddpm")]
    lines = [
        f"{images['model']} images to train the models on, {images['judge']} to train the judge, {images['real']} for measuring only. "
        f"{trained['flow']['parameters']:,} parameters, {options['max_steps']:,} optimiser steps of {options['batch_size']} images on "
        f"{found['threads']} thread: {minutes[0]} processor minutes for the flow, {minutes[1]} for the diffusion "
        f"(learning rate {options['lr']:g}, {found['machine']}, torch {found['torch']}, seed {config['seed']}).",
        "",
        f"{config['sample']['n_images']:,} samples per cell of the tables, the same number of each class. {goal(found)}",
    ]
    for guidance in config["sample"]["guidance"]:
        lines += ["", f"Guidance {guidance:g}:" if guidance != 1 else "Without guidance:", ""]
        lines += table([row for row in found["rows"] if row["guidance"] == guidance])
    lines += ["", "| real images | accuracy of the judge (%) | Fréchet distance | to the nearest training image |", "|---|---|---|---|"]
    for name, row in found["real"].items():
        frechet, nearest = f"{row['frechet']:.2f}", f"{row['to_nearest_training_image']:.2f}"
        itself = {"training": (frechet, ""), "held out": ("", nearest)}[name]  # a distance of images from themselves says nothing
        lines.append(f"| {name} | {100 * row['accuracy']:.1f} | " + " | ".join(itself) + " |")
    return lines


def goal(found: dict[str, Any]) -> str:
    """Whether the figure was reached that was set beforehand."""
    most = max(found["config"]["sample"]["guidance"])
    row = next(r for r in found["rows"] if (r["sampler"], r["steps"], r["guidance"]) == ("flow, Euler", GOAL_STEPS, most))
    minutes = found["training"]["flow"]["processor_seconds"] / 60
    reached = row["accuracy"] >= GOAL and minutes <= GOAL_MINUTES
    return (
        f"The goal was {GOAL:.0%} of guided samples of the flow at {GOAL_STEPS} steps after at most {GOAL_MINUTES:g} minutes of training: "
        f"{row['accuracy']:.1%} after {minutes:.1f}" + ("." if reached else ", not reached.")
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracy, Fréchet distance and distance to training images: samplers side by side, one line per number of steps."""
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    by_key = {(row["sampler"], row["steps"]): row for row in rows}
    lines = ["| steps | " + " | ".join(f"{what}: {name}" for what in ("accuracy (%)", "Fréchet", "nearest") for name in samplers) + " |"]
    lines.append("|---" * (1 + 3 * len(samplers)) + "|")
    for steps in dict.fromkeys(row["steps"] for row in rows):
        cells = [by_key[name, steps] for name in samplers]
        shown = [f"{100 * cell['accuracy']:.1f}" for cell in cells] + [f"{cell['frechet']:.2f}" for cell in cells]
        lines.append(f"| {steps} | " + " | ".join([*shown, *(f"{cell['to_nearest_training_image']:.2f}" for cell in cells)]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the document is out of date")
    options = parser.parse_args()
    text = DOC.read_text(encoding="utf-8")
    new = text
    for section, name in SECTIONS.items():
        begin, end = f"<!-- {section}: written by benchmarks/image_doc.py -->", f"<!-- end of {section} -->"
        before, rest = new.split(begin)
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        new = before + "\n".join([begin, *tables(found), end]) + rest.split(end)[1]
    if options.check:
        return int(new != text)
    DOC.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
