"""Damaged and malicious files against every reader, in worker processes, so that a crash is counted and not fatal::

    python benchmarks/fuzz.py                       # 2,000 h5ad files, 5,000 model directories, 1,500 texts: about 20 min on one core
    python benchmarks/fuzz.py --areas h5ad --share 0.1 --out fuzz.md

Outcomes: *refused* (an error of ours), *unchanged* (loaded, and the same to the bit), *another* (a changed file that was signed anew and
is sound: a forger may write what he likes, but only that), and the faults: *silent* (other content was accepted), *foreign* (an
exception that is not ours), *crash*, *hang* (more than 10 s of the
processor, or a minute).
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

AREAS = {"h5ad": ("fuzz_h5ad", 2000), "models": ("fuzz_models", 5000), "texts": ("fuzz_texts", 1500)}
OUTCOMES = ("refused", "unchanged", "another", "silent", "foreign", "crash", "hang")
FAULTS = OUTCOMES[3:]
PATIENCE = 10.0  # seconds
RESULTS = Path(__file__).parent / "results" / "fuzz.md"


def outcome_of(area: str, kind: str, number: int, seed: int, base: Path, originals: dict[str, str], scratch: Path) -> tuple[str, str]:
    """What became of one case, and a line about it."""
    from counterflow.errors import CounterflowError

    module = import_module(AREAS[area][0])
    rng = np.random.default_rng([seed, *AREAS[area][0].encode(), *kind.encode(), number])
    target, original = module.mutate(kind, rng, base, scratch)
    try:
        found = module.attempt(target)
    except CounterflowError as error:
        return "refused", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    except Exception as error:  # noqa: BLE001
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "counterflow/" in f.filename][-1:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (frame, *ours))
        return "foreign", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]} ({where})"
    if found == originals[original]:
        return "unchanged", ""
    return ("another", "") if kind in module.FREE_TO_DIFFER else ("silent", "")


def work(connection: Any, base: Path, originals: dict[str, dict[str, str]]) -> None:
    """Do cases until told to stop."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    scratch = Path(tempfile.mkdtemp(prefix="counterflow-fuzz-"))
    while (case := connection.recv()) is not None:
        area, kind, number, seed = case
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        connection.send(outcome_of(area, kind, number, seed, base / area, originals[area], scratch))
    shutil.rmtree(scratch, ignore_errors=True)


def processor_seconds(pid: int) -> float:
    """What a process has used of a processor: on a busy machine the clock says nothing of a hang."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended; or no such system, and the clock decides
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that does cases, replaced when one of them ends it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.process: Any = None
        self.start()

    def start(self) -> None:
        """A new process."""
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self.arguments), daemon=False)
        self.process.start()
        theirs.close()

    def do(self, case: tuple[str, str, int, int]) -> tuple[str, str]:
        """The outcome of a case, whatever it does to the process."""
        self.connection.send(case)
        try:
            begun, spent = time.monotonic(), processor_seconds(self.process.pid)
            while processor_seconds(self.process.pid) - spent < PATIENCE and time.monotonic() - begun < 6 * PATIENCE:
                if self.connection.poll(0.05 * PATIENCE):
                    return self.connection.recv()
            outcome = "hang", f"more than {PATIENCE:.0f} s"
        except EOFError:
            self.process.join()
            outcome = "crash", f"exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.start()
        return outcome

    def stop(self) -> None:
        """End it."""
        self.connection.send(None)
        self.process.join()


def run(areas: Sequence[str], share: float, seed: int, jobs: int, *, loud: bool = False) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Area -> kind -> (outcome, line) of every case."""
    with tempfile.TemporaryDirectory(prefix="counterflow-fuzz-") as folder:
        base, originals, cases = Path(folder), {}, []
        for area in areas:
            module = import_module(AREAS[area][0])
            (base / area).mkdir()
            module.prepare(base / area)
            originals[area] = module.originals(base / area)
            deal = [kind for kind in module.KINDS for _ in range(module.OFTEN.get(kind, 1))]
            total = round(AREAS[area][1] * share)
            numbers = np.linspace(0, max(total, len(deal)), total, endpoint=False).astype(int)  # few cases are of all kinds, too
            cases += [(area, deal[number % len(deal)], int(number), seed) for number in numbers]
        found: dict[str, dict[str, list[tuple[str, str]]]] = {area: defaultdict(list) for area in areas}
        workers = [Worker(base, originals) for _ in range(jobs)]
        lock, rest = threading.Lock(), iter(cases)

        def drive(worker: Worker) -> None:
            while True:
                with lock:
                    case = next(rest, None)
                if case is None:
                    return
                outcome, line = worker.do(case)
                with lock:
                    found[case[0]][case[1]].append((outcome, f"{line} [{case[2]}]"))
                    if outcome in FAULTS and loud:
                        print(case[0], case[1], outcome, line, case[2], flush=True)

        threads = [threading.Thread(target=drive, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.stop()
    return found


def faults(found: dict[str, dict[str, list[tuple[str, str]]]], *, but: frozenset[tuple[str, str]] = frozenset()) -> list[str]:
    """Every case that ended as none may, but for (outcome, start of the kind) that are known and said."""
    return [
        f"{area}: {kind}: {outcome} {line}"
        for area, kinds in found.items()
        for kind, cases in kinds.items()
        for outcome, line in cases
        if outcome in FAULTS and not any(outcome == o and kind.startswith(k) for o, k in but)
    ]


def table(found: dict[str, dict[str, list[tuple[str, str]]]], seed: int, share: float, minutes: float) -> str:
    """The results as a page."""
    import h5py

    lines = [
        "# Damaged and malicious files", "",
        f"Written by `python benchmarks/fuzz.py --seed {seed} --share {share:g}` in {minutes:.0f} minutes; h5py {h5py.__version__}, "
        f"HDF5 {h5py.version.hdf5_version}. What the outcomes are called is explained there.", "",
    ]  # fmt: skip
    for area, kinds in found.items():
        total = Counter(outcome for cases in kinds.values() for outcome, _ in cases)
        lines += [f"## {area}: {sum(total.values()):,} cases", "", "| what was done | cases | " + " | ".join(OUTCOMES) + " |"]
        lines.append("|---|" + "---:|" * (len(OUTCOMES) + 1))
        for kind, cases in kinds.items():
            counts = Counter(outcome for outcome, _ in cases)
            lines.append(f"| {kind} | {len(cases)} | " + " | ".join(str(counts[o] or "") for o in OUTCOMES) + " |")
        lines += [f"| **all** | {sum(total.values())} | " + " | ".join(str(total[o]) for o in OUTCOMES) + " |", ""]
        notes = import_module(AREAS[area][0]).__dict__.get("NOTES", "")
        lines += [notes, ""] if notes else []
    return "\n".join(lines)


def main() -> int:
    """Run, write, and fail on a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--share", type=float, default=1.0, help="of the cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    begun = time.monotonic()
    found = run(options.areas, options.share, options.seed, options.jobs, loud=True)
    options.out.write_text(table(found, options.seed, options.share, (time.monotonic() - begun) / 60) + "\n", encoding="utf-8")
    known = {area: import_module(AREAS[area][0]).KNOWN for area in found}
    bad = [line for area, kinds in found.items() for line in faults({area: kinds}, but=known[area])]
    print("\n".join(["", "not known:", *bad]))
    print(f"{len(bad)} faults beyond those that {options.out} explains")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
