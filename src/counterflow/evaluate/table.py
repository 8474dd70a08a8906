"""The long table of scores and what is derived from it: means, intervals, S, the best baseline, and a verdict in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from counterflow.errors import ConfigError, near
from counterflow.evaluate.metrics import METRICS
from counterflow.evaluate.scoring import CEILING

KEYS = ("dataset", "split", "seed", "method", "kind", "condition", "context", "stratum", "third", "n_cells", "metric", "value")
UNIT = ["dataset", "split", "condition", "context"]
FLOOR, BASELINE = "control", "mean"
N_BOOTSTRAP = 2000


@dataclass
class Table:
    """Scores of every method on every held-out condition.

    Attributes
    ----------
    rows
        Long: one row per (dataset, split, seed, method, condition, context, metric). ``kind``: model, baseline or ceiling.
    self_test
        Energy and coverage between two halves of the controls in the scoring PCA, for each data set and split.
    costs
        Method and seed -> processor seconds, parameters, peak memory, ... (filled by `compare`).
    notes
        What a reader has to know: units left out, budgets.
    """

    rows: pd.DataFrame
    self_test: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Metrics in the table, diagnostics left out."""
        return [name for name in dict.fromkeys(self.rows["metric"]) if name in METRICS]

    @property
    def models(self) -> list[str]:
        """Methods that are neither baseline nor ceiling."""
        return list(dict.fromkeys(self.rows["method"][self.rows["kind"] == "model"]))

    @property
    def baselines(self) -> list[str]:
        """Simple predictors in the table."""
        return list(dict.fromkeys(self.rows["method"][self.rows["kind"] == "baseline"]))

    def select(self, **levels: Any) -> Table:
        """The part of the table with these levels, e.g. ``stratum="combo_seen2"`` or ``third="strong"``."""
        keep = np.ones(len(self.rows), dtype=bool)
        for key, level in levels.items():
            if key not in self.rows:
                raise ConfigError(f"the table has no column {key!r}: {near(key, self.rows.columns)}")
            keep &= (self.rows[key] == level).to_numpy()
        return Table(self.rows[keep], self.self_test, self.costs, self.notes)

    def per_condition(self, metric: str) -> pd.DataFrame:
        """Units x methods; the mean over seeds."""
        of_metric = self.rows[self.rows["metric"] == metric]
        order = [name for name in dict.fromkeys(self.rows["method"]) if name in set(of_metric["method"])]
        return of_metric.groupby([*UNIT, "method"], sort=False)["value"].mean().unstack("method").reindex(columns=order)

    def summary(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per method and metric: mean over conditions, 95 % bootstrap interval over conditions, S, and the best baseline.

        S = (m - b) / (r - b), with b = the `mean` baseline and r = the split-half ceiling: 0 is as good as one generic response, 1 as
        good as repeating the experiment. Where a metric has its good end at a number, distances to that number are compared.
        """
        blocks = [self._summary_of(metric) for metric in metrics or self.metrics]
        return pd.concat([block for block in blocks if len(block)], ignore_index=True)

    def _summary_of(self, metric: str) -> pd.DataFrame:
        wide = self.per_condition(metric).dropna(how="all")
        if wide.empty:
            return pd.DataFrame()
        values = wide.to_numpy()
        mean = _nanmean(values)
        resampled = np.random.default_rng(0).integers(len(values), size=(N_BOOTSTRAP, len(values)))
        bootstrap = np.array([_nanmean(values[rows]) for rows in resampled])
        lo, hi = np.nanpercentile(bootstrap, [2.5, 97.5], axis=0) if len(values) > 1 else (mean * np.nan, mean * np.nan)
        out = pd.DataFrame({"metric": metric, "method": wide.columns, "value": mean, "lo": lo, "hi": hi, "n": np.isfinite(values).sum(0)})
        out["kind"] = out["method"].map(self.rows.drop_duplicates("method").set_index("method")["kind"])
        distance = dict(zip(out["method"], badness(metric, out["value"].to_numpy()), strict=True))
        b, r = distance.get(BASELINE, np.nan), distance.get(CEILING, np.nan)
        gap = r - b
        out["S"] = [
            (d - b) / gap + 0.0 if gap < -1e-9 and isinstance(METRICS[metric].better, str) else np.nan for d in distance.values()
        ]  # no room between baseline and ceiling: no S
        best = best_of(distance, self.baselines)
        out["best_baseline"] = out["method"] == best
        return out

    def best_baseline(self, metric: str) -> str | None:
        """The simple predictor with the best mean."""
        wide = self.per_condition(metric)
        return best_of({name: float(badness(metric, _nanmean(wide[[name]].to_numpy()))[0]) for name in wide.columns}, self.baselines)

    def paired(self, method: str, metric: str) -> dict[str, Any]:
        """`method` against the best baseline over conditions: mean gain (positive is better), share won, Wilcoxon p."""
        from scipy.stats import wilcoxon

        best = self.best_baseline(metric)
        wide = self.per_condition(metric)
        if best is None or method not in wide:
            return {"baseline": best, "gain": float("nan"), "won": float("nan"), "p": float("nan"), "n": 0}
        both = wide[[best, method]].dropna()
        gain = badness(metric, both[best].to_numpy()) - badness(metric, both[method].to_numpy())
        p = float(wilcoxon(gain).pvalue) if len(gain) >= 6 and np.any(gain) else float("nan")
        return {
            "baseline": best,
            "gain": float(gain.mean()) if len(gain) else float("nan"),
            "won": float((gain > 0).mean()) if len(gain) else float("nan"),
            "p": p,
            "n": len(gain),
        }

    def diagnostic(self, method: str, name: str) -> float:
        """Median over conditions of a diagnostic (``effect_scale``, ``sameness``) or metric; nan where there is none."""
        values = self.rows["value"][(self.rows["method"] == method) & (self.rows["metric"] == name)].to_numpy()
        return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")

    def verdict(self, method: str) -> str:
        """In words: where `method` stands to the best simple baseline, and what is wrong with it."""
        from counterflow.evaluate.verdict import verdict

        if method not in set(self.rows["method"]):
            raise ConfigError(f"the table has no method {method!r}: {near(method, dict.fromkeys(self.rows['method']))}")
        return verdict(self, method)

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """Methods x metrics, three digits, S in brackets, the best simple baseline in bold; then self-test, verdicts and notes."""
        summary = self.summary(metrics)
        shown = list(dict.fromkeys(summary["metric"]))
        lines = ["| method | " + " | ".join(f"{name} {arrow(name)}" for name in shown) + " |", "|---" * (len(shown) + 1) + "|"]
        cell = {(row.method, row.metric): row for row in summary.itertuples()}
        for method in dict.fromkeys(self.rows["method"]):
            texts = [_cell(cell.get((method, metric))) for metric in shown]
            lines.append(f"| {method} | " + " | ".join(texts) + " |")
        n = len(self.rows.drop_duplicates(UNIT))
        lines += [
            "",
            f"Mean over {n} held-out conditions (S in brackets: 0 = mean baseline, 1 = split-half ceiling); bold: best simple baseline.",
        ]
        lines += [f"Self-test of the scoring PCA, {name}: {self_test_text(values)}." for name, values in self.self_test.items()]
        lines += [f"\n**{model}**: {self.verdict(model)}" for model in self.models]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``table.csv`` (long), ``summary.json`` and ``summary.md``."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_csv(path / "table.csv", index=False, float_format="%.6g")
        summary = json.loads(self.summary().to_json(orient="records", double_precision=6))
        content = {
            "self_test": self.self_test,
            "costs": json.loads(self.costs.to_json(orient="records")),
            "notes": list(self.notes),
            "verdicts": {model: self.verdict(model) for model in self.models},
            "summary": summary,
        }
        (path / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (path / "summary.md").write_text(self.to_markdown(), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Table:
        """Read what `save` wrote."""
        path = Path(directory)
        content = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        text = dict.fromkeys(("dataset", "split", "method", "kind", "condition", "context", "stratum", "third", "metric"), str)
        rows = pd.read_csv(path / "table.csv", dtype=text, keep_default_na=False, na_values={"value": [""]})
        return cls(rows, content["self_test"], pd.DataFrame(content["costs"]), tuple(content["notes"]))

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def concat(tables: Iterable[Table]) -> Table:
    """One table of several: folds, seeds, data sets."""
    tables = list(tables)
    self_test: dict[str, dict[str, float]] = {}
    for table in tables:
        self_test |= table.self_test
    rows = pd.concat([table.rows for table in tables], ignore_index=True).drop_duplicates(list(KEYS[:-1]), ignore_index=True)
    costs = [table.costs for table in tables if len(table.costs)]
    notes = tuple(dict.fromkeys(note for table in tables for note in table.notes))
    return Table(rows, self_test, pd.concat(costs, ignore_index=True) if costs else pd.DataFrame(), notes)


def badness(metric: str, values: np.ndarray) -> np.ndarray:
    """Values turned so that lower is better."""
    better = METRICS[metric].better
    if better == "higher":
        return -values
    return values if better == "lower" else np.abs(values - better)


def best_of(distance: Mapping[str, float], names: Iterable[str]) -> str | None:
    """The name with the smallest finite `badness`."""
    finite = [name for name in names if np.isfinite(distance.get(name, np.nan))]
    return min(finite, key=lambda name: distance[name]) if finite else None


def arrow(metric: str) -> str:
    """The direction in which a metric is better."""
    better = METRICS[metric].better
    return {"higher": "↑", "lower": "↓"}.get(better, f"→{better}") if isinstance(better, str) else f"→{better:g}"


def self_test_text(values: dict[str, float]) -> str:
    """What the self-test found, and whether that is good enough."""
    good = values["energy"] < 0.05 and values["coverage"] > 0.9
    return f"energy {values['energy']:.3f} (< .05), coverage {values['coverage']:.2f} (> .9): {'passed' if good else 'NOT passed'}"


def _cell(row: Any) -> str:
    if row is None or not np.isfinite(row.value):
        return "n/a"
    text = f"{row.value:.3f}" + (f" ({row.S:.2f})" if np.isfinite(row.S) else "")
    return f"**{text}**" if row.best_baseline else text


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Column means over what is finite; nan for a column without any."""
    finite = np.isfinite(values)
    return np.where(finite, values, 0).sum(0) / np.where(finite.any(0), finite.sum(0), np.nan)
