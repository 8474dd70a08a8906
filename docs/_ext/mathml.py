"""Formulas as MathML, made when the site is built: browsers draw it themselves, so that no page needs a script or a network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """``$...$`` in a sentence."""
    self.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def displayed(self: HTML5Translator, node: nodes.math_block) -> None:
    """``$$...$$`` on lines of its own, in a box that scrolls where the page is narrow."""
    self.body.append(f'<div class="formula" tabindex="0" role="group" aria-label="formula">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    text = re.sub(r"(?<!\\)%.*", "", node.astext()).strip()
    return tex2mathml(text, as_block=as_block)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
