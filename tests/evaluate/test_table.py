import numpy as np
import pandas as pd
import pytest

from counterflow.errors import ConfigError
from counterflow.evaluate.report import write_report
from counterflow.evaluate.table import Table, concat
from counterflow.evaluate.verdict import overall


def long(values, metric="mse", split=""):
    """Table of method -> one value per condition."""
    kinds = {"control": "baseline", "mean": "baseline", "additive": "baseline", "split_half": "ceiling", "replicate": "ceiling"}
    rows = [
        {
            "dataset": "d", "split": split, "seed": 0, "method": method, "kind": kinds.get(method, "model"), "condition": f"c{i}",
            "context": "", "stratum": "single", "third": "all", "n_cells": 9, "metric": metric, "value": value,
        }
        for method, of_method in values.items()
        for i, value in enumerate(of_method)
    ]  # fmt: skip
    return Table(pd.DataFrame(rows), {"d": {"energy": 0.01, "coverage": 0.95}})


@pytest.fixture
def eight():
    base = np.linspace(1, 2, 8)
    return long({"net": base * 0.5, "control": base * 2, "mean": base, "additive": base * 0.8, "split_half": base * 0.2})


def test_s_is_0_for_the_mean_baseline_and_1_for_the_ceiling(eight):
    s = eight.summary().set_index("method")["S"]
    assert s["mean"] == pytest.approx(0) and s["split_half"] == pytest.approx(1)
    assert s["net"] == pytest.approx((0.5 - 1) / (0.2 - 1))
    assert s["control"] == pytest.approx(-1.25)  # negative values are shown


def test_s_has_no_value_where_the_ceiling_is_not_above_the_baseline():
    table = long({"net": [1.0], "control": [1.0], "mean": [0.5], "split_half": [0.7]})
    assert table.summary()["S"].isna().all()


def test_the_best_simple_baseline_is_marked_and_a_ceiling_or_model_never_is(eight):
    summary = eight.summary()
    assert list(summary["method"][summary["best_baseline"]]) == ["additive"]


def test_the_interval_covers_the_mean_and_shrinks_with_the_number_of_conditions():
    rng = np.random.default_rng(0)
    few, many = (long({"net": rng.normal(size=n), "mean": np.ones(n)}).summary().set_index("method").loc["net"] for n in (10, 160))
    assert few["lo"] < few["value"] < few["hi"]
    assert (many["hi"] - many["lo"]) < (few["hi"] - few["lo"]) / 2


def test_paired_gain_is_positive_for_better_whatever_the_direction(eight):
    found = eight.paired("net", "mse")
    assert found["baseline"] == "additive" and found["gain"] > 0 and found["won"] == 1 and found["p"] < 0.05
    worse = long({"net": [0.1] * 8, "mean": np.linspace(0.5, 0.6, 8)}, metric="pearson_delta").paired("net", "pearson_delta")
    assert worse["gain"] < 0 and worse["won"] == 0


def test_nan_is_left_out_not_counted_as_zero():
    table = long({"net": [1.0, np.nan, 3.0], "mean": [1.0, 1.0, 1.0], "split_half": [0.0, 0.0, 0.0]})
    row = table.summary().set_index("method").loc["net"]
    assert row["value"] == 2 and row["n"] == 2


def test_verdicts_start_with_what_to_do(eight):
    assert eight.verdict("net").startswith("USE IT")
    base = np.linspace(1, 2, 8)
    assert long({"net": base * 3, "mean": base, "control": base}).verdict("net").startswith("DO NOT USE IT")
    noise = base + np.array([0.1, -0.1] * 4)
    assert long({"net": noise, "mean": base}).verdict("net").startswith("NO GAIN SHOWN")
    with pytest.raises(ConfigError, match="net"):
        eight.verdict("nett")


def test_files_can_be_read_back(eight, tmp_path):
    eight.save(tmp_path)
    again = Table.load(tmp_path)
    pd.testing.assert_frame_equal(again.rows, eight.rows, check_exact=False, rtol=1e-5)
    assert again.self_test == eight.self_test
    assert "passed" in (tmp_path / "summary.md").read_text() and "net" in (tmp_path / "summary.md").read_text()


def test_concat_keeps_each_row_once(eight):
    both = concat([eight, eight, long({"mean": [1.0]}, split="other")])
    assert len(both.rows) == len(eight.rows) + 1


def test_a_failed_self_test_is_said():
    table = long({"mean": [1.0], "split_half": [0.5]})
    table.self_test["d"] = {"energy": 0.4, "coverage": 0.6}
    assert "NOT passed" in table.to_markdown()


def test_the_report_is_one_file_with_the_verdict_first_and_nothing_from_outside(eight, tmp_path):
    write_report(eight, tmp_path / "report.html", title="A <b> title")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 5e6 and "<b> title" not in text
    assert text.index("USE IT") < text.index("<svg") < text.index("How it was made")
    for outside in ("src=", "<link", "@import", 'href="http'):
        assert outside not in text
    assert text.count("<svg") >= 2


def test_few_conditions_get_no_recommendation_whatever_the_scores():
    few = np.linspace(1, 2, 5)
    text = long({"net": few * 0.5, "mean": few, "control": few * 2}).verdict("net")
    assert text.startswith("TOO FEW CONDITIONS TO TELL (5)") and "USE IT" not in text


def test_strong_and_weak_thirds_are_shown_apart():
    table = long({"net": np.arange(9.0), "mean": np.ones(9), "split_half": np.zeros(9)})
    table.rows["third"] = np.tile(np.repeat(["weak", "middle", "strong"], 3), 3)
    thirds = table.by_effect_size(["mse"]).set_index(["third", "method"])
    assert thirds.loc[("weak", "net"), "mse"] == 1 and thirds.loc[("strong", "net"), "mse"] == 7
    assert (thirds["conditions"] == 3).all()
    assert "| strong (3) | net | 7.000 |" in table.to_markdown()
    assert "By size of the real effect" not in long({"net": [1.0], "mean": [1.0]}).to_markdown()


def test_the_spread_over_trainings_is_of_their_means():
    first, second = long({"net": [1.0, 3.0], "mean": [1.0, 1.0]}), long({"net": [3.0, 5.0]})
    both = concat([first, Table(second.rows.assign(seed=1))])
    row = both.summary().set_index("method").loc["net"]
    assert row["value"] == 3 and row["seed_sd"] == pytest.approx(np.std([2, 4], ddof=1))
    assert np.isnan(both.summary().set_index("method").loc["mean", "seed_sd"])


def test_no_model_may_claim_effects_that_do_not_repeat():
    rng = np.random.default_rng(0)
    values = {"net": 0.5 + rng.normal(0, 0.01, 8), "mean": np.zeros(8), "split_half": np.full(8, 0.3)}
    scale = long({"net": np.ones(8)}, metric="effect_scale")
    good, bad = (concat([long(values | {"replicate": np.full(8, r)}, metric="pearson_delta"), scale]) for r in (0.25, 0.03))
    assert good.verdict("net").startswith("USE IT") and overall(good).startswith("Worth using")
    assert bad.verdict("net").startswith("NO EFFECT TO PREDICT") and "no model may claim any" in overall(bad)


def test_the_first_sentence_names_the_models_worth_using_or_the_rules(eight):
    assert overall(eight).startswith("Worth using here: net.")
    base = np.linspace(1, 2, 8)
    assert overall(long({"net": base * 3, "mean": base, "control": base * 2})).startswith("No model is better than the simple baselines")
    assert "mean (mse)" in overall(long({"net": base * 3, "mean": base, "control": base * 2}))
    assert overall(long({"net": base[:3] * 0.5, "mean": base[:3]})).startswith("Too few conditions")
    assert overall(long({"mean": base})).startswith("No model in this table")
