"""What the pages say is run: every Python block (a page is one namespace), every `counterflow` command, every error that is quoted.

A comment on the line before a block says what is special about it: ``<!-- not run: why -->``; ``<!-- raises: DataError -->`` (Python) and
``<!-- exit: 2 -->`` (shell), where the block ``text`` that follows is what is said, with ``...`` for what differs; ``<!-- file: NAME -->``,
where the block is the content of that file.
"""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest

import counterflow
from counterflow.cli import VERBS, main
from counterflow.cli.parser import VerbParser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "notebooks"} & {*path.parts})]
MARKS = ("", "not run", "raises", "exit", "file")
WAITS = "explore"  # serves until it is stopped
PARSED_ONLY = ("devices.md", "tokens.md")  # of several devices, and of files and models that are not at hand
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z ]+): (?P<note>[^\n]*?) -->\n)?^(?P<ticks>```+)(?P<language>\w+)\n(?P<text>.*?)^(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment before it says of it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """In the order of the page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("ticks")) + 1
        found.append(Block(page, line, match["language"], match["text"], match["mark"] or "", match["note"] or ""))
    return found


def runnable(page: Path) -> bool:
    """Whether there is something to run on a page."""
    wanted = [block for block in blocks_of(page) if block.language in ("python", "bash") and block.mark != "not run"]
    return page.name not in PARSED_ONLY and len(wanted) > 0


RUN = [page for page in PAGES if runnable(page)]


# ------------------------------------------------------------------------------------------------------------------- fast


def test_there_is_something_to_run():
    assert len(RUN) > 10 and sum(block.language == "python" for page in RUN for block in blocks_of(page)) > 30


@by_page
def test_marks_are_known_and_say_why(page):
    for block in blocks_of(page):
        assert block.mark in MARKS and (not block.mark or block.note), block
        if block.language == "bash" and page in RUN and block.mark != "not run":
            ours = all(words[0] == "counterflow" or words[0].startswith("python3") for words in block.commands)
            assert ours, f"{block}: a shell block is of counterflow only, or says <!-- not run: why -->"


@by_page
def test_python_compiles_and_commands_parse(page):
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, str(block), "exec")
        if block.language == "bash" and block.mark != "exit":
            for words in block.commands:
                if words[0] == "counterflow" and not {"...", "$RUN"} & {*words}:
                    parse(words[1:], block)


def parse(words: list[str], block: Block) -> None:
    """As far as is possible without the files that are named: the verb is there, and so is every option."""
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version", "--print_completion"), block
        return
    assert words[0] in VERBS, block
    verb: VerbParser = importlib.import_module(f"counterflow.cli.{words[0]}").parser()
    for word in words[1:]:
        if word.startswith("--"):
            verb._check_flag(verb._with_underscores(word))
    if "--config" not in words and not any(word.startswith(">") or word == "--print_config" for word in words):
        verb.parse(words[1:])


def test_a_wrong_option_on_a_page_is_found():
    with pytest.raises(counterflow.ConfigError, match="no option"):
        parse(["fit", "screen.h5ad", "--setup.pertubation_key", "gene"], Block(ROOT, 1, "bash", "", "", ""))


def test_a_changed_message_is_found():
    assert said("no verb 'x': did you mean 'y'?", "no verb 'x': ...\n") and not said("no verb 'x'", "no word 'x'\n")


def said(message: str, quoted: str) -> bool:
    """Whether a message is the one that a page quotes; lines may be broken anywhere."""
    pattern = ".*".join(re.escape(part) for part in " ".join(quoted.split()).split("..."))
    return re.fullmatch(pattern, " ".join(message.split())) is not None


# ------------------------------------------------------------------------------------------------------------------- slow


@pytest.fixture
def at_work(files, tmp_path, monkeypatch):
    """In a folder with the files, where every training is too short to be any good."""
    for file in files.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    train = counterflow.CounterFlow.train

    @functools.wraps(train)  # its signature is what the command line has for options
    def briefly(self, *arguments, **options):
        steps = min(options.pop("max_steps", None) or 4, 4)
        return train(self, *arguments, **{**options, "max_steps": steps, "max_seconds": None, "progress": False})

    monkeypatch.setattr(counterflow.CounterFlow, "train", briefly)
    monkeypatch.setattr("counterflow.evaluate.evaluate.MOST_CLASSIFIED", 1)  # classifiers take longer than everything else
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    mpl.use("Agg")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(page, at_work, capsys):
    namespace: dict[str, object] = {"__name__": "page"}
    blocks = blocks_of(page)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.mark == "not run":
            continue
        if block.mark == "file":
            Path(block.note).write_text(block.text)
            importlib.invalidate_caches()
        elif block.language == "python":
            run_python(block, after, namespace)
        elif block.language == "bash":
            for words in block.commands:
                if words[0] == "counterflow" and words[1] != WAITS:
                    run_command(words[1:], block, after, capsys)


def run_python(block: Block, after: Block | None, namespace: dict[str, object]) -> None:
    code = compile("\n" * block.line + block.text, str(block.page), "exec")
    if block.mark != "raises":
        exec(code, namespace)
        return
    with pytest.raises(getattr(counterflow, block.note)) as raised:
        exec(code, namespace)
    assert after is not None and after.language == "text" and said(str(raised.value), after.text), f"{block}: it says\n{raised.value}"


def run_command(words: list[str], block: Block, after: Block | None, capsys: pytest.CaptureFixture[str]) -> None:
    target = words.index(">") if ">" in words else len(words)
    capsys.readouterr()
    code = main(words[:target])
    out, err = capsys.readouterr()
    if target < len(words) and "/" not in words[target + 1]:
        Path(words[target + 1]).write_text(out)
    if block.mark != "exit":
        assert code == 0, f"{block}: {' '.join(words)}\n{err}"
        return
    assert code == int(block.note), f"{block}: exit code {code}\n{err}"
    assert after is not None and after.language == "text" and said(err, after.text), f"{block}: it says\n{err}"
