"""The pages, without a browser: every mistake is one message in the page, files hold what the page shows."""

import io
import re
from dataclasses import replace
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import pandas as pd
import pytest

from counterflow import CounterFlow
from counterflow.explore.answers import Explorer
from counterflow.explore.site import Pages


@pytest.fixture(scope="module")
def pages(model, screen):
    return Pages(Explorer(model, screen), "a run")


def ask(pages, page="", **fields):
    return pages(page, {name: [text] for name, text in fields.items()})


def text_of(response):
    return response.body.decode()


def test_the_first_page_asks_and_answers_nothing(pages):
    for page in ("", "rank"):
        response = ask(pages, page)
        assert response.status == 200 and "<form" in text_of(response) and "<svg" not in text_of(response)


def test_every_input_has_a_label_and_every_figure_its_words(pages, names, model):
    for text in (text_of(ask(pages, p1=names[0], in_cell_type="type0")), text_of(ask(pages, "rank", up=model.genes[0]))):
        ids = set(re.findall(r'<(?:input|select|textarea) id="([^"]+)"', text))
        assert ids and ids == set(re.findall(r'<label for="([^"]+)"', text))
        figures = re.findall(r"<svg [^>]*>", text)
        assert figures and all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)
        for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            ElementTree.fromstring(figure)


def test_nothing_is_loaded_from_outside_and_no_script_runs(pages, names, model):
    for text in (text_of(ask(pages, p1=names[0], in_cell_type="type0")), text_of(ask(pages, "rank", up=model.genes[0]))):
        assert "<script" not in text and "//" not in re.sub(r"<!--.*?-->", "", text) and "url(" not in text


def test_the_answer_says_what_is_known_and_how_sure_it_is(pages, names, new_pair):
    text = text_of(ask(pages, p1=new_pair[0], p2=new_pair[1], in_cell_type="type1", interval="0.8"))
    assert '<span class="tag components-seen">' in text and "its parts were measured, this was not" in text
    assert re.search(r"the 80% intervals of <b>\d+</b> leave out zero", text) and "in type1" in text
    assert text.count("<figure>") == 3
    measured = text_of(ask(pages, p1=names[0], in_cell_type="type1"))
    assert "their effect correlates with the predicted one" in measured and "■" in measured and "■" not in text


def test_what_was_filled_in_stays(pages, names):
    text = text_of(ask(pages, p1=names[0], p2="<script>", in_cell_type="type1", cells="12"))
    assert f'value="{names[0]}"' in text and "<option selected>type1</option>" in text and 'value="12"' in text
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("page", "fields", "words"),
    [
        ("", {"p1": ""}, "choose a perturbation"),
        ("", {"p1": "NOBODY", "in_cell_type": "type0"}, "no perturbation &#39;NOBODY&#39;"),
        ("", {"p1": "control", "in_cell_type": "type0"}, "is the control"),
        ("genes.csv", {"p1": "NOBODY"}, "no perturbation"),
        ("cells.h5ad", {}, "choose a perturbation"),
        ("rank", {"up": "XYZ"}, "1 of the 1 genes of the signature"),
        ("rank", {"up": "", "down": ""}, "say where the cells shall go"),
        ("plate.csv", {"like": "NOBODY"}, "was not measured in training"),
    ],
)
def test_a_mistake_is_one_message_in_the_page(pages, page, fields, words):
    response = ask(pages, page, **fields)
    text = text_of(response)
    assert response.status == 400 and words in text and text.count('role="alert"') == 1
    assert "Traceback" not in text and "<form" in text and "<svg" not in text


def test_a_context_without_controls_is_one_message(model, names, monkeypatch):
    obs = model.reference.obs
    elsewhere = obs["batch"].where(obs["cell_type"] == "type1", "batch0")
    monkeypatch.setattr(model, "reference", replace(model.reference, obs=obs.assign(batch=elsewhere)))
    pages = Pages(Explorer(model), "a run")
    response = ask(pages, p1=names[0], in_cell_type="type0", in_batch="batch1")
    assert response.status == 400 and "no control cell has batch = &#39;batch1&#39;" in text_of(response)
    assert ask(pages, p1=names[0], in_cell_type="type1", in_batch="batch1").status == 200


def test_a_fault_of_ours_says_so_without_a_traceback(pages, names, monkeypatch):
    monkeypatch.setattr(pages.explorer, "effect", lambda question: 1 / 0)
    response = ask(pages, p1=names[0], in_cell_type="type0")
    assert response.status == 500 and "a fault of counterflow" in text_of(response) and "Traceback" not in text_of(response)


def test_files_hold_what_the_page_shows(pages, names, model):
    genes = pd.read_csv(io.BytesIO(ask(pages, "genes.csv", p1=names[0], in_cell_type="type0").body))
    assert len(genes) == len(model.genes) and {"effect", "lo", "hi", "support", "beyond_baseline"} <= set(genes)
    cells = ask(pages, "cells.h5ad", p1=names[0], in_cell_type="type0")
    assert cells.body[:8] == b"\x89HDF\r\n\x1a\n" and cells.headers["Content-Disposition"].endswith(f'"{names[0]}_type0.h5ad"')
    page, plate = (ask(pages, name, up=model.genes[0]) for name in ("rank", "plate.csv"))
    ranked = pd.read_csv(io.BytesIO(plate.body))["condition"]
    assert re.findall(r'<tr><td><a href="[^"]+">([^<]+)</a>', text_of(page)) == list(ranked)


def test_rows_of_a_ranking_lead_to_their_effect(pages, model):
    text = text_of(ask(pages, "rank", up=model.genes[0], in_cell_type="type1"))
    link = re.search(r'<tr><td><a href="\./\?([^"]+)">([^<]+)</a>', text)
    fields = dict(parse_qsl(link[1].replace("&amp;", "&")))
    assert fields == {"in_cell_type": "type1", "p1": link[2]}
    assert link[2] in text_of(ask(pages, **fields))


def test_what_is_not_there_is_not_there(pages):
    assert ask(pages, "../model.json") is None and ask(pages, "model") is None


def test_a_model_without_a_rule_answers_what_it_can(screen, names):
    free = CounterFlow(screen, space_kwargs={"n_components": 4}, backbone_kwargs={"size": "XS"}, anchor="none")
    free.train(max_steps=1, progress=False)
    pages = Pages(Explorer(free), "a run")
    text = text_of(ask(pages, p1=names[0], in_cell_type="type0"))
    assert "There is no interval" in text and "keeps no measured effects" in text and text.count("<figure>") == 2
    assert "Interval</label>" not in text
    assert "anchor=&#39;additive&#39;" in text_of(ask(pages, "rank", up=free.genes[0]))
