"""A table in words: what a reader who reads one paragraph has to know about a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from counterflow.evaluate.scoring import CEILING, REPLICATE
from counterflow.evaluate.table import FEWEST_TESTED

if TYPE_CHECKING:
    from counterflow.evaluate.table import Table

FAMILIES = {
    "which condition (rank)": ("pds_cosine", "pearson_delta_pertref"),
    "the mean (correlation)": ("pearson_delta",),
    "the mean (error)": ("mse", "wmse"),
    "the cells (energy)": ("energy", "mmd"),
    "the cells (classifier)": ("c2st_gene", "c2st_pca"),
}
"""What is asked of a prediction, and the metrics that say so, the first that there is."""


def headline(table: Table) -> dict[str, str]:
    """Family -> the first of its metrics that has a value for some condition."""
    finite = set(table.rows["metric"][np.isfinite(table.rows["value"])])
    return {family: next(name for name in names if name in finite) for family, names in FAMILIES.items() if set(names) & finite}


SIGNIFICANT = 0.05
LEAST_REPRODUCED = 0.2  # mean correlation of two independent measurements of the held-out effects


@dataclass(frozen=True)
class Finding:
    """One question asked of a method: where it stands to the best simple baseline of that metric."""

    question: str
    metric: str
    value: float
    baseline: str
    baseline_value: float
    ceiling: float
    gain: float  # mean over conditions; positive is better
    won: float  # share of the conditions
    n: int
    p: float  # nan where there are too few conditions to test

    @property
    def outcome(self) -> str:
        """``better``, ``even`` or ``worse``. Fewer than six conditions allow no test: there the sign decides."""
        if abs(self.gain) < 1e-9 or (np.isfinite(self.p) and self.p > SIGNIFICANT):
            return "even"
        return "better" if self.gain > 0 else "worse"

    def __str__(self) -> str:
        how = "better" if self.gain > 0 else "worse"
        test = f"p = {self.p:.2g}" if np.isfinite(self.p) else "too few to test"
        return f"{self.metric} ({how} by {abs(self.gain):.2g} than {self.baseline}, better in {self.won:.0%} of {self.n}, {test})"


def findings(table: Table, method: str) -> list[Finding]:
    """What is found for each question that can be asked of the table."""
    result = []
    for question, metric in headline(table).items():
        found = table.paired(method, metric)
        if found["baseline"] is None or not np.isfinite(found["gain"]):
            continue
        means = table.per_condition(metric).mean()
        result.append(
            Finding(
                question, metric, float(means[method]), found["baseline"], found["baseline_value"],
                float(means.get(CEILING, np.nan)), found["gain"], found["won"], found["n"], found["p"],
            )
        )  # fmt: skip
    return result


def verdict(table: Table, method: str) -> str:
    """One sentence to act on; then known faults; then wins, draws and losses against the best simple baseline of each metric."""
    found, wrong = findings(table, method), faults(table, method)
    badge, lead = judgement(found, bool(wrong), reproduced(table))
    sentences = []
    for outcome, verb in (("better", "Better than"), ("even", "Not told apart from"), ("worse", "Worse than")):
        texts = [str(finding) for finding in found if finding.outcome == outcome]
        sentences += [f"{verb} the best simple baseline on {', '.join(texts)}."] if texts else []
    return " ".join([f"{badge}: {lead}", *wrong, *sentences])


def reproduced(table: Table) -> float:
    """How well the real effects repeat: correlation of two measurements with nothing in common, mean over conditions; nan if not known."""
    values = table.select(method=REPLICATE, metric="pearson_delta").rows["value"]
    return float(values.mean()) if len(values) else float("nan")


def judgement(found: list[Finding], faulty: bool, repeats: float = float("nan")) -> tuple[str, str]:
    """What to do, in capitals, and why; `repeats` is what `reproduced` gives."""
    asked, conditions = len(found), max((finding.n for finding in found), default=0)
    fewest = min(FEWEST_TESTED, conditions)  # a sign on fewer is no win beside questions that were tested
    counted = [finding for finding in found if finding.n >= fewest]
    better, worse = (sum(finding.outcome == outcome for finding in counted) for outcome in ("better", "worse"))
    if not asked:
        return "NOTHING TO SAY", "no headline metric could be computed."
    if repeats < LEAST_REPRODUCED:
        why = f"two measurements of the same real effects correlate at {repeats:.2f}: no prediction of them can be shown to be right."
        return "NO EFFECT TO PREDICT", why
    if conditions < FEWEST_TESTED and not faulty:
        why = f"it is ahead of the best simple baseline on {better} of {asked} questions and behind on {worse}, and that may be chance."
        return f"TOO FEW CONDITIONS TO TELL ({conditions})", f"{why} Hold out more, or several contexts in turn."
    certain = any(finding.outcome == "better" and finding.p < SIGNIFICANT / asked for finding in found)
    if better and not worse and not faulty and not certain:
        why = f"it beats the best simple baseline on {better} of {asked} questions, loses on none, but one of {asked} can be won by chance."
        return "PROMISING", why
    if better and not worse and not faulty:
        return "USE IT", f"it beats the best simple baseline on {better} of {asked} questions and loses on none."
    if better:
        return "MIXED", f"it beats the best simple baseline on {better} of {asked} questions and loses on {worse}."
    if worse:
        return "DO NOT USE IT", f"a simple baseline does better on {worse} of {asked} questions, and it wins none."
    return "NO GAIN SHOWN", f"it is not told apart from the best simple baseline on any of {asked} questions."


def overall(table: Table) -> str:
    """The first thing a reader of a comparison has to know."""
    if not table.models:
        return "No model in this table: simple baselines, floor and ceiling only."
    repeats = reproduced(table)
    badges = {model: judgement(findings(table, model), bool(faults(table, model)), repeats)[0] for model in table.models}
    good, likely, mixed = ([model for model, badge in badges.items() if badge == wanted] for wanted in ("USE IT", "PROMISING", "MIXED"))
    best = {metric: table.best_baseline(metric) for metric in headline(table).values()}
    simple = "The best simple baselines are " + ", ".join(f"{name} ({metric})" for metric, name in best.items() if name) + "."
    if repeats < LEAST_REPRODUCED:
        return f"These effects do not repeat (correlation {repeats:.2f} between two measurements of them): no model may claim any here."
    if good:
        return f"Worth using here: {', '.join(good)}. {simple}"
    if likely:
        return f"Promising, not proven: {', '.join(likely)}. {simple}"
    if mixed:
        return f"No model is better throughout. Better on some questions and worse on others: {', '.join(mixed)}. {simple}"
    if any(badge.startswith("TOO FEW") for badge in badges.values()):
        return f"Too few conditions were held out to recommend a model. {simple}"
    return f"No model is better than the simple baselines here: use one of those. {simple}"


def faults(table: Table, method: str) -> list[str]:
    """Known ways of being wrong that no single score shows."""
    said = []
    scale, same, spread = (table.diagnostic(method, name) for name in ("effect_scale", "sameness", "std_log2ratio"))
    ranks, delta = (table.diagnostic(method, name) for name in ("own_rank", "pearson_delta"))
    real_same = table.diagnostic(CEILING, "sameness")
    spread -= np.nan_to_num(table.diagnostic(CEILING, "std_log2ratio"))  # what two halves of the real cells differ by
    if np.isfinite(delta) and not np.isfinite(scale):
        return ["It predicts NO EFFECT: its cells are the controls."]
    if np.isfinite(same) and same > 0.98 and real_same < 0.9:
        said.append("It predicts ONE GENERIC RESPONSE for every condition.")
    elif np.isfinite(ranks) and ranks < 0.65 and table.diagnostic(CEILING, "own_rank") > 0.8:
        said.append(f"It does NOT TELL CONDITIONS APART (rank .5 is chance, it has {ranks:.2f}): effects belong to other conditions.")
    elif scale < 0.6 * min(1.0, table.diagnostic(CEILING, "effect_scale")):  # noise in few cells looks like too large an effect
        said.append(f"Its effects are TOO LARGE: they fit best when multiplied by {scale:.2f}.")
    elif scale > 1.7:
        said.append(f"Its effects are TOO SMALL: they fit best when multiplied by {scale:.2f}.")
    if spread < -1:
        said.append(f"Its cells are COLLAPSED: their spread is 2^{spread:.1f} of the real cells'.")
    elif spread > 0.4:
        said.append(f"Its cells are TOO SPREAD OUT: their spread is 2^{spread:.1f} of the real cells'.")
    return said
