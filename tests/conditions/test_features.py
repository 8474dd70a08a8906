"""What is known of a perturbation before it was measured."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from counterflow.conditions.features import coexpression, feature_table
from counterflow.errors import ConfigError, DataError


@pytest.fixture
def control():
    """Genes 0-4 follow one factor, 5-9 another, 10 none; gene 11 is never expressed."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(500, 2))
    values = 3 + np.repeat(factors, 5, axis=1) + 0.3 * rng.normal(size=(500, 10))
    values = np.column_stack([values, 3 + rng.normal(size=500), np.zeros(500)])
    return sparse.csr_matrix(np.maximum(values, 0).astype(np.float32)), [f"G{i}" for i in range(12)]


def test_coexpressed_genes_are_alike(control):
    table = coexpression(*control)
    assert "G11" not in table.index and len(table) == 11  # nothing is known of a gene that does not vary
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    few = coexpression(*control, n_components=2)
    alike = few.to_numpy() @ few.to_numpy().T
    assert alike[0, 1:5].min() > 0.9 and alike[5, 6:10].min() > 0.9 and alike[:5, 5:10].max() < 0


def test_coexpression_is_a_function_of_its_arguments(control):
    pd.testing.assert_frame_equal(coexpression(*control, seed=1), coexpression(*control, seed=1))


def test_too_little_to_learn_from():
    assert coexpression(sparse.csr_matrix(np.zeros((5, 3), dtype=np.float32)), ["a", "b", "c"]).empty


def test_learned_knows_nothing(control):
    assert feature_table("learned", *control).shape == (0, 0)


def test_a_table_of_yours_is_standardised(control):
    table = feature_table(pd.DataFrame({"x": [1.0, 3.0, 8.0], "same": 7}, index=[1, 2, 3]), *control)
    assert list(table.index) == ["1", "2", "3"]
    assert table["x"].mean() == pytest.approx(0, abs=1e-6) and table["x"].std() == pytest.approx(1) and (table["same"] == 0).all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"x": [1, 2]}, index=["A", "A"]), "several rows for 'A'"),
        (pd.DataFrame({"x": ["one", "two"]}, index=["A", "B"]), "numbers only"),
        (pd.DataFrame({"x": [1, np.nan]}, index=["A", "B"]), "NaN or infinite"),
        (pd.DataFrame({"x": [1, np.inf]}, index=["A", "B"]), "NaN or infinite"),
    ],
)
def test_bad_tables(control, table, message):
    with pytest.raises(DataError, match=message):
        feature_table(table, *control)


def test_unknown_features(control):
    with pytest.raises(ConfigError, match="did you mean 'coexpression'"):
        feature_table("coexpresion", *control)
