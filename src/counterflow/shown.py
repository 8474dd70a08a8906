"""What objects look like in a notebook: small pieces of HTML. Names are escaped; there are no scripts, links or files from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = "text-align:left;padding:.1em .8em .1em 0;vertical-align:top"
_NUMBER = "text-align:right;padding:.1em .8em .1em 0"


def card(title: str, *parts: str) -> str:
    """A heading and what stands below it (HTML made by the functions here)."""
    return f'<div style="max-width:60em;overflow-x:auto"><strong>{escape(title)}</strong>{"".join(parts)}</div>'


def facts(values: Mapping[str, object]) -> str:
    """Names and values in two columns."""
    rows = "".join(
        f'<tr><th scope="row" style="{_STYLE};font-weight:normal;opacity:.7">{escape(name)}</th>'
        f'<td style="{_STYLE}">{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], strong: Sequence[int] = ()) -> str:
    """Rows of text and numbers below the names of the columns; `strong` are the numbers of rows in bold."""
    head = "".join(f'<th scope="col" style="{_STYLE}">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr style="font-weight:{"bold" if number in strong else "normal"}">{"".join(map(_cell, row))}</tr>'
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td style="{_NUMBER}">{"n/a" if value != value else f"{value:.3f}".replace("-0.000", "0.000")}</td>'
    return f'<td style="{_NUMBER if isinstance(value, int) else _STYLE}">{escape(str(value))}</td>'


def listed(title: str, texts: Sequence[str]) -> str:
    """A numbered list; nothing where there is nothing in it."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<p>{escape(title)}</p><ol>{items}</ol>" if texts else ""


def paragraph(text: str) -> str:
    """One sentence or more."""
    return f"<p>{escape(text)}</p>"


def code(title: str, text: str, *, folded: bool = False) -> str:
    """Lines to copy; folded ones open when they are clicked."""
    lines = f'<pre style="white-space:pre-wrap"><code>{escape(text)}</code></pre>'
    if folded:
        return f"<details><summary>{escape(title)}</summary>{lines}</details>"
    return f"<p>{escape(title)}</p>{lines}"
