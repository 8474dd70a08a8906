"""How fast counterflow is beside other tools at the same work, one thread each, taking turns; and beside its goals.

    python benchmarks/speed.py [--peers SCRIPTS --environments FOLDER] [--rounds 3] [--only train sample ...]

Ours are the cases of `benchmarks/speed_cases.py`. A peer's script runs in its own environment (`FOLDER/cellflow/bin/python`, and so on)
right after ours, round after round, and writes one JSON line a figure; what is not given is left out. Both sides read the same file
(`FOLDER/data/neutral.h5ad`), or ours simulates one of that size. Writes `benchmarks/results/speed.json` and `speed.md`: medians over
rounds, lowest and highest, and the ratio to the peer of the same run. Processor seconds, but where a line says wall.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CASES = ("coupling", "train", "raw", "sample", "predict", "first_step", "dit", "ssm")
PEERS = {  # case -> (environment, script and arguments)
    "train": [("cellflow", "peer_cellflow.py --fixed-only --cells 1024"), ("cellflow", "peer_cellflow.py --fixed-only --no-ot --cells 64"),
              ("base", "reference_flow.py")],
    "sample": [("cellflow", "peer_cellflow.py --no-fixed --cells 16")],
    "raw": [("state", "peer_state.py --config state_sm"), ("cpa", "peer_cpa.py"), ("gears", "peer_gears.py")],
    "dit": [("base", "bench_backbones.py dit 16")],
    "ssm": [("base", "bench_backbones.py mamba 256 512 1024 2048")],
    "coupling": [("base", "bench_engine.py coupling")],
}  # fmt: skip


def ours(case: str, workload: Path | None) -> list[dict]:
    """One round of one case of ours."""
    command = [
        sys.executable,
        str(HERE / "speed_cases.py"),
        case,
        "--rounds",
        "1" if case in ("train", "raw") else "3",
        *(["--workload", str(workload)] if workload else []),
    ]
    return lines(command, os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})


def theirs(environment: str, script: str, options: argparse.Namespace) -> list[dict]:
    """One round of one script of a peer; nothing where its environment is not there."""
    python = options.environments / environment / "bin" / "python"
    if not python.is_file():
        return []
    name, *arguments = script.split()
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PEERS": str(options.environments), "BENCH_RESULTS": f"{folder}/results.jsonl"}
        return lines([str(python), str(options.peers / name), *arguments], env)


def lines(command: list[str], env: dict[str, str]) -> list[dict]:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def figure(line: dict) -> tuple[str, str, float] | None:
    """(what, unit, value) of a line, ours or a peer's."""
    if "case" in line:
        return f"{line['case']}: {line['variant']}", line["unit"], line["median"]
    who = [str(line[key]) for key in ("bench", "peer", "impl", "variant", "sampler") if key in line]
    who += [f"of {line['cells']} cells"] if line["bench"] == "generate" and "cells" in line else []
    who += [f"{key}={line[key]}" for key in ("L", "dim", "batch", "tokens") if key in line and line["bench"] not in ("train", "generate")]
    for key, unit in (("cells_s", "cells/s"), ("us", "us"), ("ms", "ms")):
        if key in line and line["bench"] not in ("coupling", "dit_stack", "mamba_block"):
            return ": ".join(who[:1]) + ": " + " ".join(who[1:]), unit, line[key]
    return (": ".join(who[:1]) + ": " + " ".join(who[1:]), "ms", line["ms"]) if "ms" in line else None


def table(found: dict[str, dict]) -> list[str]:
    rows = ["| what | median | lowest to highest | more |", "| --- | ---: | ---: | --- |"]
    for what, entry in found.items():
        values = entry["values"]
        more = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in entry["more"].items())
        rows.append(f"| {what} | {statistics.median(values):,.4g} {entry['unit']} | {min(values):,.4g} to {max(values):,.4g} | {more} |")
    return rows


MORE = ("params", "parameters", "error", "gain", "gain_kept", "peak_mb", "peak_rss_mib", "time_to_first_step_s", "import_s")


def gather(options: argparse.Namespace, workload: Path | None) -> dict[str, dict]:
    """Every figure of every round, by name."""
    found: dict[str, dict] = {}
    for case in options.only or CASES:
        peers = PEERS.get(case, []) if options.environments and options.peers else []
        for round_ in range(options.rounds):
            got = [line for environment, script in peers for line in theirs(environment, script, options)]
            for line in [*ours(case, workload), *got]:
                named = figure(line)
                if named is None:
                    continue
                what, unit, value = named
                entry = found.setdefault(what, {"unit": unit, "values": [], "more": {}})
                entry["values"].append(value)
                entry["more"] |= {key: line[key] for key in MORE if line.get(key) is not None}
            print(f"{case}: round {round_ + 1} of {options.rounds}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the peers' scripts")
    parser.add_argument("--environments", type=Path, help="folder of their environments and of the workload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES)
    options = parser.parse_args()
    workload = options.environments / "data" / "neutral.h5ad" if options.environments else None
    found = gather(options, workload if workload and workload.is_file() else None)
    store = RESULTS / "speed.json"
    if options.only and store.is_file():  # the other cases stay as they were
        kept = json.loads(store.read_text(encoding="utf-8"))["figures"]
        found = kept | found
    import torch

    where = {"processor": platform.machine(), "torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    where |= {"date": datetime.date.today().isoformat(), "rounds": options.rounds, "avx512": torch.backends.cpu.get_cpu_capability()}
    store.write_text(json.dumps({**where, "figures": found}, indent=1) + "\n", encoding="utf-8")
    said = ", ".join(f"{key} {value}" for key, value in where.items())
    text = [f"# Speed\n\n`python benchmarks/speed.py`; {said}. Lines with a tool's name are that tool's, measured in the same rounds.\n"]
    (RESULTS / "speed_figures.md").write_text("\n".join([*text, *table(found)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
