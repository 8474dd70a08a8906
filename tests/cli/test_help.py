"""The help of every verb teaches: an example that its own parser takes, options in sections, nothing said twice, nothing left out."""

import importlib
import re
import shlex

import pytest

from counterflow.cli import VERBS

LONG = 60  # letters: shorter lines may well be the same


@pytest.fixture(scope="module")
def parsers():
    return {verb: importlib.import_module(f"counterflow.cli.{verb}").parser() for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_said_twice(parsers, verb):
    texts = [action.help or "" for action in parsers[verb].parser._actions]
    long = [text for text in texts if len(text) > LONG]
    assert len(long) == len(set(long))


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_line(parsers, verb):
    actions = parsers[verb].parser._actions
    assert [action.dest for action in actions if not (action.help or "").strip()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_parse(parsers, verb):
    example = importlib.import_module(f"counterflow.cli.{verb}").EXAMPLE.replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in example.splitlines() if line.strip()]
    assert commands and all(words[:2] == ["counterflow", verb] for words in commands)
    for words in commands:
        if "--config" not in words:
            parsers[verb].parse(words[2:])


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_the_sections_are_the_public_calls(parsers, verb):
    text = parsers[verb].parser.format_help()
    titles = re.findall(r"^(\w+): the arguments of (\S+):$", text, flags=re.MULTILINE)
    assert titles == [("setup", "CounterFlow.setup_anndata"), ("model", "CounterFlow"), ("train", "CounterFlow.train")]
    assert "see --setup.perturbation_key (required)" in text
