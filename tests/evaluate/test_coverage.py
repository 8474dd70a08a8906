"""The check of intervals: it counts what is inside, and tells a promise that is not kept."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from counterflow.evaluate.coverage import LEVELS, by_support, coverage
from counterflow.evaluate.evaluate import evaluate
from counterflow.evaluate.report import write_report
from counterflow.evaluate.table import Table
from counterflow.evaluate.truth import read_truth


class Sure:
    """Knows the measured effects of the held-out cells, and is off by `error` with intervals of `half` to either side."""

    def __init__(self, adata, error, half):
        self.adata, self.error, self.half = adata, error, half
        self.genes = tuple(adata.var_names[::-1])  # its own order
        self.truth = read_truth(adata, "test", 0)

    def effects(self, adata, conditions, cells, seed):
        name = conditions["perturbation"].iloc[0]
        unit = next(unit for unit in self.truth.units if unit.request["perturbation"].iloc[0] == name)
        assert cells == len(unit.real)
        effect = (self.truth.mean(unit.real) - self.truth.control_mean(unit.context_code))[::-1] + self.error
        half_width = lambda level: np.full(len(effect), self.half * level)  # noqa: E731
        yield SimpleNamespace(support="seen", effect=effect, certainty=object(), rival=effect + 1.0, half_width=half_width)

    def predict(self, adata, conditions):
        return adata.copy()


@pytest.fixture(scope="module")
def held_out(simulated):
    return simulated.adata


def test_what_is_inside_is_counted(held_out):
    truth = read_truth(held_out, "test", 0)
    rows = coverage(Sure(held_out, 0.5, 0.6), held_out, truth, 0)
    assert len(rows) == len(truth.units) * len(LEVELS)
    assert rows.set_index("level")["covered"].groupby("level").mean().to_dict() == {level: float(0.6 * level >= 0.5) for level in LEVELS}
    assert (rows["beyond_baseline"] == 1).all() and rows["width"].to_numpy() == pytest.approx(0.6 * rows["level"].to_numpy())


def test_a_predictor_without_intervals_has_no_rows(held_out):
    class Silent(Sure):
        def effects(self, *rest):
            for one in super().effects(*rest):
                one.certainty = None
                yield one

    assert coverage(Silent(held_out, 0.0, 1.0), held_out, read_truth(held_out, "test", 0), 0).empty


def test_it_is_in_the_table_the_files_and_the_report(held_out, tmp_path):
    table = evaluate({"sure": Sure(held_out, 0.5, 0.6), "not": NoIntervals()}, held_out, metrics=["mse"], n_halvings=1)
    assert set(table.coverage["method"]) == {"sure"}
    table.save(tmp_path)
    pd.testing.assert_frame_equal(Table.load(tmp_path).coverage, table.coverage, check_dtype=False, rtol=1e-4)
    write_report(table, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "How sure the predictions are" in text and "100.0 %" in text
    means = by_support(table.coverage)
    assert means["which"].iloc[0] == "all" and means["covered"].iloc[0] == 1.0


class NoIntervals:
    def predict(self, adata, conditions):
        return adata.copy()
