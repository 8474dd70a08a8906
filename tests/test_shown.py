"""HTML of objects: names are text whatever they hold, nothing is fetched or run, and it stays small."""

from html.parser import HTMLParser

import pytest

from counterflow.shown import card, code, facts, listed, paragraph, table

EVIL = '<script>alert("x")</script><img src=http://x.y/z.png>&amp;'


class Tags(HTMLParser):
    """What is in a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(html)
        assert self.open == [], "every tag that is opened is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def safe(html):
    """The text of HTML that runs nothing and fetches nothing."""
    page = Tags(html)
    assert not {"script", "img", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert not any(name in ("src", "href") or name.startswith("on") for _, attrs in page.tags for name in attrs)
    return "".join(page.text)


@pytest.mark.parametrize(
    "html",
    [
        card(EVIL),
        facts({EVIL: EVIL}),
        table([EVIL], [[EVIL]]),
        listed(EVIL, [EVIL]),
        paragraph(EVIL),
        code(EVIL, EVIL),
        code(EVIL, EVIL, folded=True),
    ],
)
def test_names_are_text(html):
    assert EVIL in safe(html)


def test_numbers_and_what_is_not_there():
    text = safe(table(["method", "mse", "n"], [["mine", 0.1234, 3], ["other", float("nan"), 0], ["zero", -1e-9, 1]], strong=[0]))
    assert "0.123" in text and "n/a" in text and "0.000" in text and "-0.000" not in text
    assert table(["a"], [["x"], ["y"]], strong=[1]).count("bold") == 1


def test_nothing_to_list_is_nothing():
    assert listed("wrong", []) == ""
