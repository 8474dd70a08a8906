"""Tab, pressed in a real shell."""

import shutil
import subprocess

import pytest

from counterflow.cli import VERBS, main

PRESS = """
{script}
COMP_WORDS=({words}); COMP_CWORD=$(({n} - 1)); _counterflow; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from counterflow.cli.completion import script

    return script(["bash"])


def tab(script, *words):
    quoted = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        ["bash", "--norc"], input=PRESS.format(script=script, words=quoted, n=len(words)), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("counterflow", "ge"), ["generate"]),
        (("counterflow", "fit", "--model.backbone_"), ["--model.backbone_kwargs"]),
        (("counterflow", "fit", "x.h5ad", "--model.backbone", "s"), ["set", "ssm"]),
        (("counterflow", "fit", "x.h5ad", "--split", "unseen_co"), ["unseen_combination", "unseen_context"]),
        (("counterflow", "generate", "runs/a", "--on_unknown", ""), ["error", "mean"]),
        (("counterflow", "fit", "x.h5ad", "--setup.drop_missing", "t"), ["true"]),
        (("counterflow", "--print_completion", ""), ["bash", "zsh"]),
    ],
)
def test_words_are_completed(script, words, expected):
    assert tab(script, *words) == expected


@needs_bash
def test_every_verb_is_offered(script):
    assert set(VERBS) <= set(tab(script, "counterflow", ""))


@needs_bash
def test_files_are_completed_where_no_word_is_known(script, tmp_path):
    (tmp_path / "screen.h5ad").touch()
    for before in (("fit",), ("fit", "--quiet"), ("generate", "run", "--controls")):
        assert tab(script, "counterflow", *before, f"{tmp_path}/scr") == [f"{tmp_path}/screen.h5ad"]


def test_it_is_printed_and_another_shell_is_an_error(capsys):
    assert main(["--print_completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
    assert main(["--print_completion", "zssh"]) == 2
    assert "'zsh'" in capsys.readouterr().err
