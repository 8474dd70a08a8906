"""The report of a fit: the verdict first, what was learnt and from what, how to make it again; one file, readable by everybody."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from counterflow import CounterFlow
from counterflow.cli import main
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.effects.on_target import OnTarget
from counterflow.evaluate.table import Table
from counterflow.fit_report import Made, _targets, page

FACTS = {
    "data": {"path": "some/screen.h5ad", "sha256": "abc" * 9},
    "versions": {"torch": "2"},
    "device": "cpu",
    "threads": 1,
    "seeds": {"model": 3},
}


def table(advantage):
    rng = np.random.default_rng(0)
    worth = {"mlp/pca": 1 - advantage, "mean": 1.0, "control": 2.0, "split_half": 0.1}
    kinds = {"mlp/pca": "model", "split_half": "ceiling"}
    rows = [
        ("d", "s", 0, method, kinds.get(method, "baseline"), f"c{i}", "", "", "strong", 9, "mse", value * base)
        for i, base in enumerate(rng.uniform(1, 2, 12))
        for method, value in worth.items()
    ]
    columns = ["dataset", "split", "seed", "method", "kind", "condition", "context", "stratum", "third", "n_cells", "metric", "value"]
    return Table(pd.DataFrame(rows, columns=columns))


@pytest.fixture(scope="module")
def model():
    adata = simulate_screen(**SMALL, seed=2).adata
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"])
    model = CounterFlow(adata, space_kwargs={"n_components": 5}, backbone_kwargs={"size": "XS"})
    model.train(max_steps=3, progress=False)
    model.history = [{"step": 20.0 * i, "train_loss": 1.0 / i, "val_loss": 2.0 / i} for i in range(1, 6)]
    return model


@pytest.fixture
def made():
    return Made("runs/my first", 12.3, FACTS, ["A+B", "C"], ["Something <odd> was seen."])


def test_the_verdict_comes_first_and_the_way_to_repeat_it_last(model, made):
    good, bad = (page(model, made, table(advantage)) for advantage in (0.5, -0.5))
    assert "USE IT" in good and "DO NOT USE IT" in bad
    order = [
        good.index(words) for words in ("Worth using here", "What it was trained on", "How far the flow is trusted", "How it was made")
    ]
    assert order == sorted(order)
    assert "counterflow replay &#39;runs/my first&#39;" in good and "--config &#39;runs/my first/config.yaml&#39;" in good


def test_without_scores_it_does_not_pretend(model, made):
    text = page(model, replace(made, held_out=[]), None)
    assert "nothing here says how good this model is" in text and "USE IT" not in text and "All scores" not in text
    assert "were not scored" in page(model, made, None)


def test_everything_that_was_learnt_is_said(model, made):
    text = page(model, made, None)
    for name, (trust, n) in {kind: (t.mean, t.n) for kind, t in model.trust.items()}.items():
        assert re.search(rf"<td>{100 * trust:.0f} %</td><td>[^<]+</td><td>{n}</td>", text), name
    assert f"{model.trained_on['cells']:,} to train on" in text and "type0, type1" in text and "A+B, C" in text
    assert "Something &lt;odd&gt; was seen." in text and "model 3" in text and "torch 2" in text
    assert "Loss against optimiser steps: training from 1 to 0.2; validation from 2 to 0.4." in text
    measured = [spec for spec in model.vocabulary.conditions if spec.parts]
    assert f"The {len(measured)} conditions it has seen, and the 2 that were held out" in text


def test_it_is_one_file_with_words_for_every_figure(model, made):
    text = page(model, made, table(0.2))
    for outside in ("<script", "src=", "<link", "@import", 'href="http'):
        assert outside not in text
    assert not re.search(r"url\((?!#)", text)
    figures = re.findall(r"<svg[^>]*>", text)
    assert len(figures) >= 3 and all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)
    assert len(text) < 5e6 and text.count("<th") == text.count('<th scope="col"')


def test_the_doubtful_targets_come_first_and_are_all_that_is_drawn():
    found = [OnTarget(f"P{i:02d}", -1.0, 0.01 * (i + 1)) for i in range(50)] + [OnTarget("DEAD", 0.0, 0.1)]
    drawn = re.findall(r"<title>(\w+):", str(_targets(found)))
    assert len(drawn) == 40 and drawn[:2] == ["DEAD", "P49"] and "P00" not in drawn


def test_a_model_without_a_rule_says_so(model, made, monkeypatch):
    monkeypatch.setattr(model, "rule", None)
    monkeypatch.setattr(model, "intervals", None)
    monkeypatch.setattr(model, "trust", {})
    text = page(model, made, None)
    assert "the flow carries the whole effect" in text and "No intervals" in text and "no measured rule" in text


@pytest.mark.slow
def test_fit_writes_it_with_what_it_warned_of(tmp_path, capsys):
    screen = tmp_path / "screen.h5ad"
    simulate_screen(**SMALL | {"n_genes": 30}, seed=1).adata.write_h5ad(screen)
    words = ["fit", str(screen), "--setup.perturbation_key", "perturbation", "--setup.control", "control", "--train.max_steps", "2"]
    assert main([*words, "--model.space_kwargs.n_components", "4", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    text = (tmp_path / "run" / "report.html").read_text()
    warned = re.search(r"warning: (\d+ of \d+ groups)", said.err)[1]
    assert warned in text and f"report: {tmp_path / 'run' / 'report.html'}" in said.out
    assert "Fit of screen.h5ad" in text and "nothing here says how good" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [400, 1300])
def test_it_fits_a_phone_and_is_read_offline(model, made, tmp_path, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "report.html").write_text(page(model, made, table(0.2)))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": 800})
        asked = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto((tmp_path / "report.html").as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert len(asked) == 1
        boxes = opened.locator("[role=region]")
        for i in range(boxes.count()):  # a table that is wider scrolls in its box, by keyboard too
            boxes.nth(i).focus()
            assert boxes.nth(i).evaluate("box => document.activeElement === box")
        browser.close()
