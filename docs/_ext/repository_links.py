"""Links of Markdown pages to files of the repository that are no pages: shown as the path, since the site has no copy of them.

``[path.py](../src/counterflow/flow/path.py)`` works where the repository is browsed; on the site it is the path, checked to be there.
"""

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[2]


def as_path(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """The path in place of a link that leads out of the documentation; None (a warning) where nothing is there."""
    if node.get("reftype") != "myst":
        return None
    target = str(node["reftarget"]).split("#")[0]
    page = Path(env.srcdir, env.doc2path(node.get("refdoc", env.docname), base=False))
    for start in (page.parent, ROOT, ROOT / "benchmarks" / "results"):  # the last two: where included texts come from
        path = (start / target).resolve()
        if target and path.exists() and path.is_relative_to(ROOT):
            return nodes.literal("", path.relative_to(ROOT).as_posix())
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at links before they are called broken."""
    app.connect("missing-reference", as_path, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
