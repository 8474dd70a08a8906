"""The documentation site: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

Nothing is fetched: formulas become MathML when the pages are built, fonts are those of the reader, notebooks show their committed outputs.
"""

import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "src"), str(HERE / "_ext")]

# -- notebooks live beside the code; a copy of them, with their outputs, is a part of the site --
shown = HERE / "notebooks"
shown.mkdir(exist_ok=True)
wanted = {path.name: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
for stale in {path.name for path in shown.glob("*.ipynb")} - set(wanted):
    (shown / stale).unlink()
for name, path in wanted.items():
    shutil.copy2(path, shown / name)

project = "counterflow"
author = "The counterflow developers"
copyright = "The counterflow developers, BSD-3-Clause"
version = release = installed("counterflow")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml", "repository_links"]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]
suppress_warnings = ["config.cache"]

# -- pages --
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- reference, from the docstrings --
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
nitpicky = False
default_role = "code"

# -- looks --
html_theme = "furo"
html_title = "counterflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["report_norman.html"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
