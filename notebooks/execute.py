"""Execute notebooks: each is written as a `.py` file in jupytext's percent format, and kept with its outputs as `.ipynb` beside it.

    python notebooks/execute.py [notebooks/01_quickstart.py ...]

With the extra `notebooks`, jupytext keeps the two in step while you edit in Jupyter; this script needs nbclient only.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
}


def read(script: Path) -> nbformat.NotebookNode:
    """The notebook that a script in percent format is, without outputs."""
    body = re.sub(r"\A# ---\n.*?^# ---\n", "", script.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    pieces = re.split(r"^# %%(.*)\n", body, flags=re.MULTILINE)[1:]
    cells = []
    for number, (kind, text) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        if "[markdown]" in kind:
            cell = nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", text.strip("\n"), flags=re.MULTILINE))
        else:
            cell = nbformat.v4.new_code_cell(text.strip("\n"))
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def execute(notebook: nbformat.NotebookNode, *, timeout: int = 600) -> nbformat.NotebookNode:
    """The notebook with outputs, but for warnings (they name files of the machine); a cell that fails raises."""
    executed = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False).execute()
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return executed


def main() -> None:
    scripts = [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("[0-9]*.py"))
    for script in scripts:
        notebook = execute(read(script))
        notebook.metadata = METADATA
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
