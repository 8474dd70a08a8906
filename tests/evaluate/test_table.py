import re

import numpy as np
import pandas as pd
import pytest

from counterflow.errors import ConfigError
from counterflow.evaluate.examples import Examples
from counterflow.evaluate.plots import learning_curve
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
    figures = re.findall(r"<svg[^>]*>", text)
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)  # words for those who do not see them
    boxes = re.findall(r'<div class="wide"[^>]*>', text)
    assert len(boxes) >= len(figures) and all('tabindex="0" role="region" aria-label="' in box for box in boxes)  # scrolled by keyboard


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


def test_too_wide_and_too_narrow_do_not_cancel():
    """The good end of this metric is 0: a mean of 0 over conditions of +1 and -1 is not a good spread."""
    swing = np.tile([1.0, -1.0], 4)
    values = {"net": swing, "mean": np.full(8, 0.5), "additive": 2 * swing, "control": np.full(8, 0.8), "split_half": np.full(8, 0.1)}
    table = long(values, metric="std_log2ratio")
    s = table.summary().set_index("method")["S"]
    assert s["net"] == pytest.approx((1 - 0.5) / (0.1 - 0.5)) and s["mean"] == 0
    assert table.best_baseline("std_log2ratio") == "mean" and table.paired("net", "std_log2ratio")["gain"] == pytest.approx(-0.5)


def test_a_baseline_of_the_easy_data_set_is_not_the_best_of_both():
    """Two data sets in one table, in which other baselines apply: each is compared with its own best."""
    easy = long({"net": [0.3] * 6, "mean": [0.4] * 6, "additive": [0.2] * 6, "split_half": [0.1] * 6}, split="easy")
    hard = long({"net": [2.0] * 6, "mean": [3.0] * 6, "split_half": [1.0] * 6}, split="hard")
    both = concat([easy, hard])
    assert both.best_baseline("mse") == "mean"
    paired = both.paired("net", "mse")
    assert paired["n"] == 12 and paired["won"] == 0.5 and paired["gain"] == pytest.approx((1.0 - 0.1) / 2)
    assert paired["baseline"] == "additive, mean" and paired["baseline_value"] == pytest.approx(1.6)
    s = both.summary().set_index("method")["S"]
    assert s["additive"] == pytest.approx((0.2 - 0.4) / (0.1 - 0.4))  # over the conditions that it has
    assert "additive, mean" in both.verdict("net")


def test_a_report_of_several_data_sets_draws_for_each_what_it_has(tmp_path):
    tables = []
    for split, methods in (("easy", ("net", "mean", "additive")), ("hard", ("other", "mean"))):
        base = np.linspace(1, 2, 6)
        table = long({name: base * (i + 1) for i, name in enumerate(methods)} | {"split_half": base / 2}, split=split)
        where = {"dataset": "d", "split": split, "condition": "c0", "context": ""}
        genes, rng = ["PC1", "PC2", "G1"], np.random.default_rng(0)
        cells = [
            {**where, "method": method, "cell": i, "feature": gene, "value": rng.normal()}
            for method in ("control", "real", *methods)
            for i in range(4)
            for gene in genes
        ]
        effects = [{**where, "method": m, "gene": g, "predicted": rng.normal(), "real": 1.0} for m in methods for g in ("G1", "G2")]
        table.examples = Examples(pd.DataFrame(cells), pd.DataFrame(effects))
        tables.append(table)
    write_report(concat(tables), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Example: d easy c0" in text and "Example: d hard c0" in text


def test_a_learning_curve_of_many_models_shows_all_of_them_and_the_best_rule():
    table = long({**{f"net{i}": [1.0, 2.0] for i in range(9)}, "mean": [1.0, 1.5]})
    points = [(method, share) for method in table.rows["method"].unique() for share in (0.5, 1.0)]
    curve = [{"method": method, "metric": "mse", "share": share, "conditions": 4 * share, "value": 1.0} for method, share in points]
    table.learning_curve = pd.DataFrame(curve)
    labels = [text.get_text() for text in learning_curve(table, "mse").axes[0].get_legend().get_texts()]
    assert labels == [f"net{i}" for i in range(9)] + ["mean"]
    assert len(concat([table, long({"mean": [1.0]}, split="other")]).learning_curve) == len(curve)


def test_nothing_of_an_earlier_table_stays_beside_a_saved_one(eight, tmp_path):
    eight.learning_curve = pd.DataFrame({"method": ["net"], "metric": ["mse"], "share": [0.5], "value": [1.0]})
    eight.save(tmp_path)
    long({"net": [1.0], "mean": [2.0]}).save(tmp_path)
    assert Table.load(tmp_path).learning_curve.empty


def test_a_table_without_any_value_can_be_shown_and_saved(tmp_path):
    table = long({"net": [np.nan], "mean": [np.nan]}, metric="pds_cosine")
    assert table.summary().empty and "NOTHING TO SAY" in table.to_markdown()
    table.save(tmp_path)


def test_a_sign_on_few_conditions_is_no_win_beside_tests_on_many():
    base, few = np.linspace(1, 2, 8), np.r_[np.full(5, np.nan), np.ones(3)]
    errors = long({"net": base + np.tile([0.1, -0.1], 4), "mean": base})
    cells = long({"net": few * 0.5, "mean": few}, metric="energy")
    assert concat([errors, cells]).verdict("net").startswith("NO GAIN SHOWN")


def test_one_win_in_five_that_chance_can_give_is_not_enough_to_use_it():
    base = np.linspace(1, 2, 8)
    slight = base - np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, -0.01])  # p = .0156: below .05, not below .05 / 4
    metrics = ("mse", "energy", "c2st_gene", "pearson_delta")
    same = [long({"net": base, "mean": base}, metric) for metric in metrics[1:3]]
    scale = long({"net": np.ones(8)}, metric="effect_scale")
    four = concat([long({"net": slight, "mean": base}), *same, long({"net": -base, "mean": -base}, "pearson_delta"), scale])
    assert four.verdict("net").startswith("PROMISING") and overall(four).startswith("Promising")
    assert long({"net": slight, "mean": base}).verdict("net").startswith("USE IT")
