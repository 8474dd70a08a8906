"""The site names everything that is public, builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import counterflow as cf
from counterflow.backbones import BACKBONES
from counterflow.cli import VERBS
from counterflow.data.splits import SPLITS
from counterflow.diagnosis.labelings import LABELINGS
from counterflow.evaluate.baselines import BASELINES
from counterflow.evaluate.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def described():
    """Every object that a page of the reference describes."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, flags=re.MULTILINE))


def test_every_public_name_is_in_the_reference(described):
    rooms = {name for name in cf.__all__ if isinstance(getattr(cf, name), type(sys))}
    public = {f"counterflow.{name}" for name in cf.__all__ if name not in rooms and not name.startswith("__")}
    public |= {f"counterflow.evaluate.{name}" for name in cf.evaluate.__all__}
    assert public - described == set()
    assert {room for room in rooms if not any(f"{name}.".startswith(f"counterflow.{room}.") for name in described)} == set()
    assert "counterflow.pl" in described  # as a module with `__all__`: every plot


def test_what_the_reference_describes_is_there(described):
    import pkgutil

    for name in described:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("protocol.md", SPLITS),
        ("protocol.md", METRICS),
        ("protocol.md", [name for name in BASELINES if not name.endswith("+ct") and name != "qmap_top2"]),
        ("formats.md", LABELINGS),
        ("choose.md", [name for name in BACKBONES if name != "image_dit"]),
        ("guide/command_line.md", VERBS),
    ],
)
def test_lists_are_complete(name, words):
    text = page(name)
    assert [word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)] == []


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if f"`{name}`" not in page("install.md")] == []


def test_what_a_newcomer_looks_for_is_where_the_page_says():
    """The loss, the place where a perturbation enters, and the blocks that listen."""
    text = page("where.md")
    for file, word in (("flow/path.py", "def flow_loss"), ("module.py", "def loss"), ("conditions/encoder.py", "class ConditionEncoder")):
        assert f"`{file}" in text and word in (ROOT / "src/counterflow" / file).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", text)) - {"src/counterflow/"}
    assert len(named) > 10
    package = ROOT / "src/counterflow"
    assert [name for name in named if not (package / name).exists() and not any(package.rglob(name))] == []


def test_links_to_other_places_are_well_formed():
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\((https?:[^)\s]*)\)", path.read_text(encoding="utf-8")):
            parts = urlsplit(link)
            assert parts.scheme == "https" and "." in parts.netloc and " " not in link, f"{path}: {link}"


def test_pictures_say_in_words_what_they_show():
    for path in DOCS.rglob("*.md"):
        for words in re.findall(r"!\[([^\]]*)\]\(", path.read_text(encoding="utf-8")):
            assert len(words) > 10, path


# ------------------------------------------------------------------------------------------------------------------- slow


class Loads(HTMLParser):
    """Addresses that a page makes a browser fetch."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "trees")]
    done = subprocess.run([*command, str(DOCS), str(out / "html")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file() and (site / "api" / "model.html").is_file() and (site / "report_norman.html").is_file()
    assert "<math" in (site / "concepts.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    for path in site.rglob("*.html"):
        outside = [address for address in Loads(path.read_text(encoding="utf-8")).found if address.startswith(("http:", "https:", "//"))]
        assert outside == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import\s+['\"]http", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_notebooks_are_shown_with_their_outputs(site):
    for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        text = (site / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert "cell_output" in text and "<img" in text, notebook
