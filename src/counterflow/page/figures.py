"""A matplotlib figure as part of a page, with words for those who do not see it."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


def figure_svg(figure: Figure, alt: str) -> Markup:
    """SVG with a text alternative; the same bytes for the same figure."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "counterflow", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))
