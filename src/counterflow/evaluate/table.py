"""The long table of scores and what is derived from it: means, intervals, S, the best baseline, and a verdict in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from counterflow.errors import ConfigError, near
from counterflow.evaluate.examples import Examples
from counterflow.evaluate.glance import glance
from counterflow.evaluate.metrics import METRICS
from counterflow.evaluate.scoring import CEILING

KEYS = ("dataset", "split", "seed", "method", "kind", "condition", "context", "stratum", "third", "n_cells", "metric", "value")
SUMMARY = ("metric", "method", "value", "lo", "hi", "n", "kind", "S", "seed_sd", "best_baseline")
UNIT = ["dataset", "split", "condition", "context"]
FLOOR, BASELINE = "control", "mean"
THIRDS = ("strong", "middle", "weak")  # by the length of the real effect
N_BOOTSTRAP = 2000
FEWEST_TESTED = 6  # conditions: with fewer, no outcome of a signed-rank test is below .05


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
    examples
        Cells and effects of a few conditions, for plots.
    learning_curve
        Method, share and number of training conditions, metric -> value (filled by `compare`).
    coverage
        Whether intervals of predicted effects hold the measured ones; see `counterflow.evaluate.coverage`.
    """

    rows: pd.DataFrame
    self_test: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    examples: Examples = field(default_factory=Examples)
    learning_curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        scored = ", ".join([*self.models, *self.baselines])
        return f"Table({len(self.rows):,} scores of {scored} by {', '.join(self.metrics)}; see summary(), verdict(name), save(directory))"

    def _repr_html_(self) -> str:
        return glance(self)

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
        return replace(self, rows=self.rows[keep])

    def per_condition(self, metric: str) -> pd.DataFrame:
        """Units x methods; the mean over seeds."""
        of_metric = self.rows[self.rows["metric"] == metric]
        order = [name for name in dict.fromkeys(self.rows["method"]) if name in set(of_metric["method"])]
        return of_metric.groupby([*UNIT, "method"], sort=False)["value"].mean().unstack("method").reindex(columns=order)

    def summary(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per method and metric: mean over conditions, 95 % bootstrap interval over conditions, S, and the best baseline.

        S = (m - b) / (r - b), with b = the `mean` baseline and r = the split-half ceiling: 0 is as good as one generic response, 1 as
        good as repeating the experiment. Where a metric has its good end at a number, distances to that number are compared.
        ``seed_sd``: standard deviation over trainings of the mean over conditions.
        S of a method is taken over the conditions that it, the baseline and the ceiling have. Empty if no metric has a value.
        """
        blocks = [block for metric in metrics or self.metrics if len(block := self._summary_of(metric))]
        return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=list(SUMMARY))

    def _summary_of(self, metric: str) -> pd.DataFrame:
        wide = self.per_condition(metric).dropna(how="all")
        if wide.empty:
            return pd.DataFrame()
        values = wide.to_numpy()
        mean = _nanmean(values)
        resampled = np.random.default_rng(0).integers(len(values), size=(N_BOOTSTRAP, len(values)))
        bootstrap = np.array([_nanmean(values[rows]) for rows in resampled])
        lo, hi = np.full((2, len(mean)), np.nan)
        known = np.isfinite(mean)
        if len(values) > 1:
            lo[known], hi[known] = np.nanpercentile(bootstrap[:, known], [2.5, 97.5], axis=0)
        out = pd.DataFrame({"metric": metric, "method": wide.columns, "value": mean, "lo": lo, "hi": hi, "n": np.isfinite(values).sum(0)})
        out["kind"] = out["method"].map(self.rows.drop_duplicates("method").set_index("method")["kind"])
        distance = wide.apply(lambda column: badness(metric, column.to_numpy()))
        out["S"] = [_score(distance, method) for method in wide.columns]
        out["seed_sd"] = out["method"].map(self._over_seeds(metric))
        out["best_baseline"] = out["method"] == self.best_baseline(metric)
        return out

    def _over_seeds(self, metric: str) -> dict[Any, float]:
        """Standard deviation over trainings of a method's mean over conditions; nan for one training."""
        of_metric = self.rows[self.rows["metric"] == metric]
        means = of_metric.groupby([*UNIT, "method", "seed"])["value"].mean().groupby(["method", "seed"]).mean()
        return means.groupby("method").std().to_dict()

    def by_effect_size(self, metrics: Sequence[str]) -> pd.DataFrame:
        """Means over the thirds of conditions with strong, middle and weak real effects: a mean over all conditions hides regimes.

        One row per third and method, one column per metric, ``conditions`` their number; empty with fewer than three conditions.
        """
        chosen = self.rows[self.rows["metric"].isin(metrics) & self.rows["third"].isin(THIRDS)]
        if chosen.empty:
            return pd.DataFrame()
        means = chosen.groupby(["third", "method", "metric"], sort=False)["value"].mean().unstack("metric")[list(metrics)]
        number = chosen.drop_duplicates(UNIT)["third"].value_counts()
        methods = list(dict.fromkeys(self.rows["method"]))
        order = [(third, method) for third in THIRDS for method in methods if (third, method) in means.index]
        out = means.loc[order].reset_index()
        out.insert(1, "conditions", out["third"].map(number))
        return out

    def best_baseline(self, metric: str) -> str | None:
        """The simple predictor with the best mean, of those that answer for the most conditions: fewer may be easier ones."""
        return _best(self._distances(metric)[self._with(metric, self.baselines)])

    def opponents(self, metric: str) -> pd.DataFrame:
        """What a method is compared with on every unit: the best simple predictor of its data set and split, ``baseline`` and ``value``."""
        wide, distance = self.per_condition(metric), self._distances(metric)
        names = self._with(metric, self.baselines)
        best = {key: _best(distance.loc[rows, names]) for key, rows in distance.groupby(UNIT[:2]).groups.items()}
        chosen = [best[unit[:2]] for unit in wide.index]
        values = [np.nan if name is None else wide.loc[unit, name] for unit, name in zip(wide.index, chosen, strict=True)]
        return pd.DataFrame({"baseline": chosen, "value": values}, index=wide.index)

    def _with(self, metric: str, methods: Iterable[str]) -> list[str]:
        have = set(self.per_condition(metric))
        return [name for name in methods if name in have]

    def _distances(self, metric: str) -> pd.DataFrame:
        """`per_condition`, turned so that lower is better."""
        return self.per_condition(metric).apply(lambda column: badness(metric, column.to_numpy()))

    def paired(self, method: str, metric: str) -> dict[str, Any]:
        """`method` against the best baseline (of each data set and split) over conditions: mean gain (positive is better), share won, p."""
        from scipy.stats import wilcoxon

        wide, opponent = self.per_condition(metric), self.opponents(metric)
        if method not in wide or opponent["baseline"].isna().all():
            return {"baseline": None, "baseline_value": np.nan, "gain": np.nan, "won": np.nan, "p": np.nan, "n": 0}
        both = opponent.assign(method=wide[method]).dropna()
        gain = badness(metric, both["value"].to_numpy()) - badness(metric, both["method"].to_numpy())
        p = float(wilcoxon(gain).pvalue) if len(gain) >= FEWEST_TESTED and np.any(gain) else float("nan")
        return {
            "baseline": ", ".join(dict.fromkeys(opponent["baseline"].dropna())),
            "baseline_value": float(both["value"].mean()) if len(both) else float("nan"),
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
        lines += self._thirds_in_markdown()
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def _thirds_in_markdown(self) -> list[str]:
        """Strong and weak effects apart: models, the best simple baseline of each metric, and the ceiling."""
        from counterflow.evaluate.verdict import headline

        metrics = list(headline(self).values())
        thirds = self.by_effect_size(metrics)
        if thirds.empty or not self.models:
            return []
        shown = {*self.models, *(self.best_baseline(metric) for metric in metrics), CEILING}
        lines = ["", "By size of the real effect (thirds of the conditions):", ""]
        lines += [
            "| effect | method | " + " | ".join(f"{name} {arrow(name)}" for name in metrics) + " |",
            "|---" * (len(metrics) + 2) + "|",
        ]
        for row in thirds[thirds["method"].isin(shown) & (thirds["third"] != "middle")].to_dict("records"):
            values = [f"{row[name]:.3f}" if np.isfinite(row[name]) else "n/a" for name in metrics]
            lines.append(f"| {row['third']} ({row['conditions']}) | {row['method']} | " + " | ".join(values) + " |")
        return lines

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``table.csv`` (long), ``summary.json``, ``summary.md``, and the examples and learning curve, if there are any."""
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
        self.examples.save(path)
        for name, frame in (("learning_curve", self.learning_curve), ("coverage", self.coverage)):
            (path / f"{name}.csv").unlink(missing_ok=True)  # of an earlier table
            if len(frame):
                frame.to_csv(path / f"{name}.csv", index=False, float_format="%.6g")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Table:
        """Read what `save` wrote."""
        path = Path(directory)
        content = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        text = dict.fromkeys(("dataset", "split", "method", "kind", "condition", "context", "stratum", "third", "metric"), str)
        rows = pd.read_csv(path / "table.csv", dtype=text, keep_default_na=False, na_values={"value": [""]})
        curve, intervals = path / "learning_curve.csv", path / "coverage.csv"
        return cls(
            rows,
            content["self_test"],
            pd.DataFrame(content["costs"]),
            tuple(content["notes"]),
            Examples.load(path),
            pd.read_csv(curve) if curve.exists() else pd.DataFrame(),
            _read_coverage(intervals) if intervals.exists() else pd.DataFrame(),
        )

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def concat(tables: Iterable[Table]) -> Table:
    """One table of several: folds, seeds, data sets. Learning curves of several tables are not joined."""
    tables = list(tables)
    self_test: dict[str, dict[str, float]] = {}
    for table in tables:
        self_test |= table.self_test
    rows = pd.concat([table.rows for table in tables], ignore_index=True).drop_duplicates(list(KEYS[:-1]), ignore_index=True)
    costs = [table.costs for table in tables if len(table.costs)]
    notes = tuple(dict.fromkeys(note for table in tables for note in table.notes))
    spent = pd.concat(costs, ignore_index=True) if costs else pd.DataFrame()
    curves = [table.learning_curve for table in tables if len(table.learning_curve)]
    curve = curves[0] if len(curves) == 1 else pd.DataFrame()
    sure = [table.coverage for table in tables if len(table.coverage)]
    intervals = pd.concat(sure, ignore_index=True).drop_duplicates(ignore_index=True) if sure else pd.DataFrame()
    return Table(rows, self_test, spent, notes, Examples.concat(table.examples for table in tables), curve, intervals)


def _read_coverage(file: Path) -> pd.DataFrame:
    text = dict.fromkeys(("dataset", "split", "method", "condition", "context", "support"), str)
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values={"split_half": [""], "beyond_baseline": [""]})


def badness(metric: str, values: np.ndarray) -> np.ndarray:
    """Values turned so that lower is better."""
    better = METRICS[metric].better
    if better == "higher":
        return -values
    return values if better == "lower" else np.abs(values - better)


def _best(distance: pd.DataFrame) -> str | None:
    """The column with the smallest mean, of those with the most finite entries."""
    number = np.isfinite(distance).sum()
    if number.empty or number.max() == 0:
        return None
    return str(distance.loc[:, number == number.max()].mean().idxmin())


def _score(distance: pd.DataFrame, method: str) -> float:
    """S of a method, from `badness`; nan where there is no room between baseline and ceiling."""
    if not {BASELINE, CEILING} <= set(distance):
        return float("nan")
    m, b, r = (distance[name].to_numpy() for name in (method, BASELINE, CEILING))
    shared = np.isfinite(m) & np.isfinite(b) & np.isfinite(r)
    gap = float((r - b)[shared].mean()) if shared.any() else 0.0
    return float((m - b)[shared].mean()) / gap + 0.0 if gap < -1e-9 else float("nan")


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
