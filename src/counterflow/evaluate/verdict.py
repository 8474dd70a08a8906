"""A table in words: what a reader who reads one paragraph has to know about a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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


def verdict(table: Table, method: str) -> str:
    """One sentence to act on; then wins, draws and losses against the best simple baseline of each metric; then known faults."""
    said: dict[str, list[str]] = {"Better than": [], "Not told apart from": [], "Worse than": []}
    for metric in headline(table).values():
        outcome, text = _against_best(table, method, metric)
        if outcome:
            said[outcome].append(text)
    wrong = faults(table, method)
    sentences = [f"{verb} the best simple baseline on " + ", ".join(found) + "." for verb, found in said.items() if found]
    better, even, worse = (len(found) for found in said.values())
    conditions = max((table.paired(method, metric)["n"] for metric in headline(table).values()), default=0)
    return " ".join([_lead(better, even, worse, bool(wrong), conditions), *wrong, *sentences])


def _lead(better: int, even: int, worse: int, faulty: bool, conditions: int) -> str:
    asked = better + even + worse
    if not asked:
        return "NOTHING TO SAY: no headline metric could be computed."
    if conditions < FEWEST_TESTED and not faulty:
        found = f"it is ahead of the best simple baseline on {better} of {asked} questions and behind on {worse}"
        return f"TOO FEW CONDITIONS TO TELL ({conditions}): {found}, and that may be chance. Hold out more, or several contexts in turn."
    if better and not worse and not faulty:
        return f"USE IT: it beats the best simple baseline on {better} of {asked} questions and loses on none."
    if better:
        return f"MIXED: it beats the best simple baseline on {better} of {asked} questions and loses on {worse}."
    if worse:
        return f"DO NOT USE IT: a simple baseline does better on {worse} of {asked} questions, and it wins none."
    return f"NO GAIN SHOWN: it is not told apart from the best simple baseline on any of {asked} questions."


def _against_best(table: Table, method: str, metric: str) -> tuple[str, str]:
    """Whether it wins. Fewer than six conditions allow no test: the sign decides, and the text says how many there are."""
    found = table.paired(method, metric)
    if found["baseline"] is None or not np.isfinite(found["gain"]):
        return "", ""
    how = "better" if found["gain"] > 0 else "worse"
    text = f"{metric} ({how} by {abs(found['gain']):.2g} than {found['baseline']}, better in {found['won']:.0%} of {found['n']}"
    text += f", p = {found['p']:.2g})" if np.isfinite(found["p"]) else ", too few to test)"
    if abs(found["gain"]) < 1e-9 or (np.isfinite(found["p"]) and found["p"] > 0.05):
        return "Not told apart from", text
    return ("Better than" if found["gain"] > 0 else "Worse than"), text


def faults(table: Table, method: str) -> list[str]:
    """Known ways of being wrong that no single score shows."""
    said = []
    scale, same, spread = (table.diagnostic(method, name) for name in ("effect_scale", "sameness", "std_log2ratio"))
    ranks, delta = (table.diagnostic(method, name) for name in ("pds_cosine", "pearson_delta"))
    real_same = table.diagnostic("split_half", "sameness")
    if np.isfinite(delta) and not np.isfinite(scale):
        return ["It predicts NO EFFECT: its cells are the controls."]
    if np.isfinite(same) and same > 0.98 and real_same < 0.9:
        said.append("It predicts ONE GENERIC RESPONSE for every condition.")
    elif np.isfinite(ranks) and ranks < 0.65 and table.diagnostic("split_half", "pds_cosine") > 0.8:
        said.append(f"It does NOT TELL CONDITIONS APART (pds_cosine {ranks:.2f}, chance .5): effects belong to other conditions.")
    elif scale < 0.6 * min(1.0, table.diagnostic("split_half", "effect_scale")):  # noise in few cells looks like too large an effect
        said.append(f"Its effects are TOO LARGE: they fit best when multiplied by {scale:.2f}.")
    elif scale > 1.7:
        said.append(f"Its effects are TOO SMALL: they fit best when multiplied by {scale:.2f}.")
    if spread < -1:
        said.append(f"Its cells are COLLAPSED: their spread is 2^{spread:.1f} of the real one.")
    elif spread > 0.4:
        said.append(f"Its cells are TOO SPREAD OUT: their spread is 2^{spread:.1f} of the real one.")
    return said
