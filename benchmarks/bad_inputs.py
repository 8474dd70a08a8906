"""Every bad input through the Python face and the command line: what is said, with which class and exit code, and what was written.

    python benchmarks/bad_inputs.py [--out benchmarks/results/bad_inputs.md]

The cases stand in `bad_input_table.py`; `tests/robustness/test_table.py` checks each of them. The script fails if one does not hold.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bad_input_spoiling import ACCEPTED, REFUSED, ROWS, SETUP, Case, Scene, screen
from bad_input_table import CASES

from counterflow.cli import main as command_line
from counterflow.data.schema import Setup
from counterflow.errors import CounterflowWarning
from counterflow.run import fingerprint


@dataclass(frozen=True)
class Played:
    """What came of a case."""

    case: Case
    error: str  # class of the exception in Python; empty for none
    said: str  # its message, or the warnings
    code: int
    printed: str  # stderr of the command
    written: tuple[str, ...]  # files that the command left
    read: str  # fingerprint of the data, by the run directory; empty without one

    def failures(self) -> list[str]:
        """How it differs from what the table asks for."""
        case, found = self.case, []
        refused = case.outcome == REFUSED
        if self.error != (case.error.__name__ if refused else ""):
            found.append(f"Python raised {self.error or 'nothing'}")
        if self.code != (2 if refused else 0):
            found.append(f"exit code {self.code}")
        if "Traceback" in self.printed or "internal error" in self.printed:
            found.append("a traceback")
        missing = [word for word in case.says if word not in self.said or word not in self.printed]
        if missing:
            found.append(f"not said: {missing}")
        if refused and self.written and not case.keeps:
            found.append(f"written: {list(self.written)}")
        if not set(case.keeps) <= {name.removeprefix("out/result/") for name in self.written}:
            found.append(f"lost: {case.keeps}")
        if case.same and self.read != good_data():
            found.append("other numbers were read")
        return found


def play(case: Case, folder: Path) -> Played:
    """Both faces."""
    (folder / "python").mkdir()
    (folder / "shell").mkdir()
    error, said = in_python(case, scene(case, folder / "python"))
    made = scene(case, folder / "shell")
    code, printed, written = in_shell(case, made)
    facts = made.out / "run.json"
    read = json.loads(facts.read_text())["data"]["sha256"] if facts.is_file() else ""
    return Played(case, error, said, code, printed, written, read)


@cache
def good_data() -> str:
    """The fingerprint of the good screen."""
    return fingerprint(screen(), Setup(**SETUP), "")["sha256"]


def scene(case: Case, folder: Path) -> Scene:
    """The spoilt screen, in memory and in a file."""
    adata = screen().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt = case.spoil(adata)
        made = Scene(folder, adata if spoilt is None else spoilt, case)
        made.adata.copy().write_h5ad(made.file)
        if case.file is not None:
            case.file(made.file)
    return made


def in_python(case: Case, made: Scene) -> tuple[str, str]:
    """Class of the exception and its text, or the warnings. The user's object must stay what it was."""
    before = made.adata.X.copy() if made.adata.X is not None else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CounterflowWarning)
        try:
            case.python(made)
        except Exception as error:  # noqa: BLE001  which class it is, is the question
            return type(error).__name__, str(error)
    if before is not None and hasattr(before, "indices"):
        for part in ("data", "indices", "indptr"):
            if not (getattr(before, part) == getattr(made.adata.X, part)).all() and "changed" not in case.name:
                return "changed", "the user's matrix was changed"
    return "", "\n".join(str(warning.message) for warning in caught if issubclass(warning.category, CounterflowWarning))


def in_shell(case: Case, made: Scene) -> tuple[int, str, tuple[str, ...]]:
    """Exit code, stderr, and the files that were not there before."""
    words = case.command(made)
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(words)
    after = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    written = sorted(str(path.relative_to(made.folder)) for path, when in after.items() if before.get(path) != when and path.is_file())
    return code, err.getvalue(), tuple(written)


def report(played: list[Played]) -> str:
    """The table in Markdown."""
    held = {row for row in range(1, len(ROWS) + 1) if not any(p.failures() for p in played if p.case.row == row)}
    lines = [
        "# Bad inputs", "",
        f"`python benchmarks/bad_inputs.py`: {len(held)} of {len(ROWS)} rows hold through both faces, {len(played)} cases.",
        "", "| row | input | case | outcome | Python | exit | message | written | holds |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in sorted(played, key=lambda p: p.case.row):
        case = one.case
        message = one.said if case.outcome == REFUSED else "\n".join(line for line in one.said.splitlines() if _told(case, line))
        text = " ".join(_without_paths(message).split()).replace("|", "\\|")
        written = "nothing" if case.outcome == REFUSED and not one.written else f"{len(one.written)} files"
        cells = (case.row, ROWS[case.row - 1], case.name, case.outcome, one.error or "-", one.code, text or "-", written, _verdict(one))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _told(case: Case, line: str) -> bool:
    return case.outcome != ACCEPTED and any(word in line for word in case.says)


def _verdict(one: Played) -> str:
    return "yes" if not one.failures() else "NO: " + "; ".join(one.failures()).replace("|", "\\|")


def _without_paths(text: str) -> str:
    return re.sub(r"(/[\w.\-]+)+/(?=[\w.\-]+)", "", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bad_inputs.md")
    arguments = parser.parse_args()
    played = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            played.append(play(case, Path(folder)))
        print(f"{case.row:2d} {case.name}: {_verdict(played[-1])}", flush=True)
    arguments.out.write_text(report(played), encoding="utf-8")
    print(f"wrote {arguments.out}")
    sys.exit(any(one.failures() for one in played))


if __name__ == "__main__":
    main()
