"""Plots: they return the Axes they were given, show what they say, and refuse what would mislead."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from counterflow import ConfigError, DataError, pl


def cells(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    values = np.log1p(rng.poisson(5 * np.exp(shift), (n, 12)).astype(np.float32))
    adata = AnnData(sparse.csr_matrix(values))
    adata.var_names = [f"G{i:02d}" for i in range(12)]
    return adata


@pytest.fixture
def groups():
    shift = np.zeros(12)
    shift[[3, 7]] = 1.5, -2.0
    return cells(80, 0), cells(30, 1, shift), cells(40, 2, shift)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_embedding_puts_predicted_cells_where_they_are(groups, ax):
    control, real, predicted = groups
    assert pl.embedding(control, real, predicted, ax=ax) is ax
    assert sorted(legend(ax)) == ["control (80)", "predicted (40)", "real (30)"]
    by_size = {len(drawn.get_offsets()): drawn.get_offsets().mean(0) for drawn in ax.collections if len(drawn.get_offsets()) > 1}
    assert np.linalg.norm(by_size[40] - by_size[30]) < 0.3 * np.linalg.norm(by_size[40] - by_size[80])
    assert "PC1" in ax.get_xlabel() and "%" in ax.get_xlabel()


def test_embedding_without_real_cells(groups, ax):
    pl.embedding(groups[0], None, groups[2], ax=ax)
    assert len(legend(ax)) == 2


def test_effect_shows_r_and_names_the_largest_genes(ax):
    true = np.linspace(-1, 1, 11)
    assert pl.effect(true, {"model": 2 * true, "opposite": -true}, genes=[f"G{i}" for i in range(11)], n_labels=2, ax=ax) is ax
    assert legend(ax) == ["model, r = 1.00", "opposite, r = -1.00"]
    assert {text.get_text() for text in ax.texts} == {"G0", "G10"}
    with pytest.raises(DataError, match="'predicted' has 10 genes and the true effect 11"):
        pl.effect(true, true[1:], ax=ax)


def test_no_effect_has_no_correlation(ax):
    pl.effect(np.linspace(-1, 1, 5), {"control": np.zeros(5)}, ax=ax)
    assert legend(ax) == ["control, r = nan"]


def test_top_genes_are_those_that_change_in_the_real_cells(groups, ax):
    assert pl.top_genes(*groups, n_genes=2, ax=ax) is ax
    assert {label.get_text() for label in ax.get_xticklabels()} == {"G03", "G07"}
    assert legend(ax) == ["control", "real", "predicted"]
    with pytest.raises(DataError, match="did you mean 'G03'"):
        pl.top_genes(*groups, genes=["G3"], ax=ax)


def test_save_writes_a_picture_and_genes_go_by_name(groups, tmp_path):
    control, real, predicted = groups
    ax = pl.embedding(control[:, ::-1], real, predicted, save=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    other = pl.embedding(control, real, predicted)
    for a, b in zip(ax.collections, other.collections, strict=True):
        np.testing.assert_allclose(a.get_offsets(), b.get_offsets(), atol=1e-5)
    plt.close("all")


def test_counts_and_other_genes_are_refused(groups, ax):
    control, real, predicted = groups
    counts = control.copy()
    counts.X = counts.X * 100
    with pytest.raises(DataError, match="not log1p"):
        pl.embedding(counts, real, predicted, ax=ax)
    with pytest.raises(DataError, match="first: 'G00'"):
        pl.top_genes(control[:, 1:], real, predicted, ax=ax)


def test_nothing_is_written_into_the_cells(groups, ax):
    before = [group.X.toarray() for group in groups]
    pl.top_genes(*groups, ax=ax)
    pl.embedding(*groups, ax=ax)
    assert all((group.X.toarray() == values).all() for group, values in zip(groups, before, strict=True))


@pytest.fixture(scope="module")
def table(tiny_screen, tmp_path_factory):
    from counterflow import CounterFlow
    from counterflow.compare import compare

    adata = tiny_screen.adata.copy()
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
    options = {"space_kwargs": {"n_components": 4}, "backbone_kwargs": {"size": "XS"}}
    return compare(
        adata, ["mlp/pca"], split="unseen_combination", budget_steps=2, learning_curve=(0.5,), model_options=options,
        n_halvings=1, progress=False, out=tmp_path_factory.mktemp("pl"),
    )  # fmt: skip


def test_scores_place_every_method_by_its_s(table, ax):
    assert pl.scores(table, "pearson_delta", ax=ax) is ax
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert "mlp/pca" in names and "mean" in names
    dots = next(drawn for drawn in ax.collections if len(drawn.get_offsets()) == len(names))
    assert abs(dots.get_offsets()[names.index("mean")][0]) < 1e-9  # 0 by definition
    with pytest.raises(ConfigError, match="did you mean 'pearson_delta'"):
        pl.scores(table, "pearson_dleta")


def test_conditions_set_the_model_against_the_best_rule(table, ax):
    assert pl.conditions(table, ax=ax) is ax
    wide = table.per_condition("pearson_delta")
    best = table.best_baseline("pearson_delta")
    both = wide[[best, "mlp/pca"]].dropna().to_numpy()
    np.testing.assert_allclose(np.sort(ax.collections[0].get_offsets()[:, 1]), np.sort(both[:, 1]))
    assert best in ax.get_xlabel() and ax.get_ylabel() == "mlp/pca"
    with pytest.raises(ConfigError, match="no model 'mlp'"):
        pl.conditions(table, model="mlp")


def test_learning_curve_and_coverage_are_drawn_or_say_why_not(table, ax):
    pl.learning_curve(table, ax=ax)
    assert "mlp/pca" in legend(ax) and ax.get_xlabel() == "training conditions"
    empty = replace(table, learning_curve=table.learning_curve.iloc[:0], coverage=table.coverage.iloc[:0])
    with pytest.raises(ConfigError, match="no learning curve"):
        pl.learning_curve(empty)
    with pytest.raises(ConfigError, match="no intervals"):
        pl.coverage(empty)


def test_coverage_has_a_line_for_the_model(table, ax):
    rows = [{"method": "mlp/pca", "level": level, "covered": level, "top_covered": level - 0.1} for level in (0.5, 0.8, 0.9)]
    pl.coverage(replace(table, coverage=pd.DataFrame(rows)), ax=ax)
    assert legend(ax)[0] == "mlp/pca"
    np.testing.assert_allclose(next(line for line in ax.lines if line.get_label() == "mlp/pca").get_ydata(), [0.5, 0.8, 0.9])


def test_interactions_are_one_where_the_pair_is_the_sum_of_its_parts(ax):
    class Says:
        setup = SimpleNamespace(delimiter="+")

        def predict_effect(self, names, interval):
            effects = {"A": [1.0, 0.0], "B": [0.0, 2.0], "C": [1.0, 1.0], "B+A": [1.0, 2.0], "A+C": [1.0, 0.5], "C+B": [2.0, 6.0]}
            found = {name: next(v for k, v in effects.items() if sorted(k.split("+")) == sorted(name.split("+"))) for name in names}
            return pd.DataFrame(
                [{"condition": n, "gene": g, "effect": v} for n, row in found.items() for g, v in zip("XY", row, strict=True)]
            )

    assert pl.interactions(Says(), ["A", "B", "C"], ax=ax) is ax
    assert [text.get_text() for text in ax.texts][:2] == ["1.00", "0.50"]
    assert ax.images[0].get_array()[1, 2] == pytest.approx(2.0)
    with pytest.raises(DataError, match="at least two"):
        pl.interactions(Says(), ["A"])


def test_interactions_of_a_model(declared, tiny_screen, ax):
    from counterflow import CounterFlow

    model = CounterFlow(declared, space_kwargs={"n_components": 3}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=2, progress=False)
    names = sorted(model.vocabulary.seen)[:3]
    pl.interactions(model, names, ax=ax)
    shown = ax.images[0].get_array()
    assert np.isfinite(shown[0, 1]) and shown[0, 1] == shown[1, 0] and len(ax.texts) == 6


def test_scaling_says_how_steep_a_line_is(ax):
    costs = pd.DataFrame({"genes": [10, 100, 10, 100], "seconds": [1.0, 10.0, 1.0, 100.0], "backbone": ["ssm", "ssm", "dit", "dit"]})
    pl.scaling(costs, "genes", "seconds", by="backbone", ax=ax)
    assert legend(ax) == ["ssm slope 1.00", "dit slope 2.00"] and ax.get_xscale() == "log"
    with pytest.raises(DataError, match="no column 'cells'"):
        pl.scaling(costs, "cells", "seconds")
    with pytest.raises(DataError, match="positive"):
        pl.scaling(costs.assign(seconds=0), "genes", "seconds")


def test_trajectories_lead_from_the_control_cells_to_the_predicted_ones(declared, tiny_screen, ax):
    from counterflow import CounterFlow

    model = CounterFlow(declared, space_kwargs={"n_components": 3}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=2, progress=False)
    name = tiny_screen.conditions[0]
    real = declared[declared.obs["perturbation"] == name]
    assert pl.trajectories(model, name, real, n_cells=9, n_steps=4, ax=ax) is ax
    assert legend(ax) == [f"real ({real.n_obs})", "control (9)", "predicted (9)"]
    lines = np.array([line.get_xydata() for line in ax.lines])
    assert lines.shape == (9, 5, 2)
    ends = [drawn.get_offsets() for drawn in ax.collections if len(drawn.get_offsets()) == 9]
    np.testing.assert_allclose(lines[:, 0], ends[0], atol=1e-6)
    np.testing.assert_allclose(lines[:, -1], ends[1], atol=1e-6)
    assert np.abs(ends[0] - ends[1]).max() > 0.1
    with pytest.raises(DataError, match="neither seen"):
        pl.trajectories(model, "nobody")


class OfPairs:
    """Effects of six perturbations and their pairs, without a fit."""

    setup = SimpleNamespace(delimiter="+")

    def predict_effect(self, names, interval):
        rng = np.random.default_rng(0)
        return pd.DataFrame([{"condition": n, "gene": g, "effect": rng.normal() + 2} for n in names for g in "WXYZ"])


DRAW = {
    "embedding": lambda groups, table, ax: pl.embedding(*groups, ax=ax, title="a title that is much longer than the axes are wide, A+B"),
    "top_genes": lambda groups, table, ax: pl.top_genes(*groups, ax=ax),
    "effect": lambda groups, table, ax: pl.effect(np.linspace(-1, 1, 12), np.linspace(-1, 1, 12), genes=list("ABCDEFGHIJKL"), ax=ax),
    "interactions": lambda groups, table, ax: pl.interactions(OfPairs(), [f"GENE{i}" for i in range(6)], ax=ax),
    "scaling": lambda groups, table, ax: pl.scaling(
        pd.DataFrame({"genes": [500, 1000, 2000, 4000], "s": [1, 2, 4, 9]}), "genes", "s", ax=ax
    ),
    "scores": lambda groups, table, ax: pl.scores(table, ax=ax),
    "conditions": lambda groups, table, ax: pl.conditions(table, ax=ax),
    "learning_curve": lambda groups, table, ax: pl.learning_curve(table, ax=ax),
}


@pytest.mark.parametrize("name", DRAW)
def test_everything_that_is_written_fits_a_column_of_a_paper(groups, table, name):
    """At 3.5 inches: within the figure, and no text on top of another."""
    for group in groups:
        group.var_names = [f"LONGNAME{i}" for i in range(12)]
    figure, ax = plt.subplots(figsize=(3.5, 3), layout="constrained")
    DRAW[name](groups, table, ax)
    figure.canvas.draw()
    ticks = [label for axis in (ax.xaxis, ax.yaxis) for label in shown(axis)]
    key = ax.get_legend()
    outside = [ax.title, ax.xaxis.label, ax.yaxis.label, *([key] if key is not None and key.get_window_extent().y1 < ax.bbox.y0 else [])]
    boxes = {artist: artist.get_window_extent() for artist in [*outside, *ticks] if not hasattr(artist, "get_text") or artist.get_text()}
    for artist, box in boxes.items():
        assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, f"{artist} runs out of the figure"
        assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, f"{artist} runs out of the figure"
    for i, artist in enumerate(outside):
        beside = [tick for tick in ticks if tick.get_rotation() == 0 or artist is not ax.yaxis.label]  # a corner of their box is empty
        for other in [*outside[i + 1 :], *beside]:
            assert artist not in boxes or other not in boxes or not overlap(boxes[artist], boxes[other]), f"{artist} covers {other}"
    level = [label for label in ticks if label.get_rotation() == 0]
    for one, other in combinations(level, 2):
        assert not overlap(boxes[one], boxes[other]), f"{one} covers {other}"
    plt.close(figure)


def shown(axis):
    """Labels of the ticks that are drawn."""
    lo, hi = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if lo - 1e-9 <= tick.get_loc() <= hi + 1e-9 and tick.label1.get_text()]


def overlap(a, b):
    """By more than a point each way."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
