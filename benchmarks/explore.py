"""How long the pages of `counterflow explore` take to answer, from the request to the last byte, on one processor.

::

    python benchmarks/explore.py --data ../shared/data

Fits the default model to each screen (nothing held out), serves it, and asks for effects of random pairs and for rankings towards random
genes: each question once, so that nothing comes from what was answered before. Writes ``benchmarks/results/explore.md``.
"""

from __future__ import annotations

import argparse
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

import counterflow as cf
from counterflow.explore.answers import Explorer
from counterflow.explore.server import Server
from counterflow.explore.site import Pages

RESULTS = Path(__file__).parent / "results" / "explore.md"
SCREENS = {
    "Norman": ("norman2019_k562_crispra.h5ad", {"library_size_key": "n_counts_full"}),
    "Kang, seven cell types": ("kang2018_pbmc_ifnb.h5ad", {"match_keys": ["cell_type"], "library_size_key": "n_counts_full"}),
    "McFaline, three cell lines": ("mcfaline2024_gbm_crispri.h5ad", {"match_keys": ["cell_type"], "library_size_key": "n_counts_full"}),
    "simulated, 60 perturbations, 40 pairs, 2,000 genes": (None, {"match_keys": ["cell_type"]}),
}


def fitted(file: str | None, setup: dict, data: Path) -> tuple[cf.CounterFlow, object]:
    """The default model of a screen, and its cells."""
    if file is None:
        adata = cf.simulate_screen(n_genes=2000, n_perturbations=60, n_pairs=40, cells_per_condition=60, cells_control=600).adata
    else:
        adata = cf.read_h5ad(data / file)
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", **setup)
    model = cf.CounterFlow(adata)
    model.train(progress=False)
    model.adata = None  # as it is loaded from a run
    return model, adata


def questions(model: cf.CounterFlow, explorer: Explorer, n: int) -> dict[str, list[str]]:
    """Kind of question -> addresses."""
    rng, names = np.random.default_rng(0), sorted(model.vocabulary.seen)

    def cells(i: int) -> dict[str, str]:
        return {f"in_{key}": levels[i % len(levels)] for key, levels in explorer.choices.columns.items()}

    n_effects = n if len(names) > 1 else min(n, max(len(levels) for levels in explorer.choices.columns.values()))  # nothing twice
    pairs = [sorted(rng.choice(names, min(2, len(names)), replace=False)) for _ in range(n_effects)]
    effects = [{"p1": pair[0], "p2": pair[-1] if len(pair) > 1 else ""} | cells(i + 1) for i, pair in enumerate(pairs)]
    lists = [{"up": " ".join(rng.choice(model.genes, 10, replace=False)), "parts": "2"} | cells(i) for i in range(n)]
    asked = {"effect of a perturbation or pair": ["?" + urlencode(one) for one in effects]}
    together = {spec.parts for spec in model.vocabulary.conditions}
    if len(names) > 1 and any((a, b) not in together for a in names for b in names if a < b):
        asked["ranking of all unmeasured pairs"] = ["rank?" + urlencode(one) for one in lists]
    asked["the same question again"] = asked["effect of a perturbation or pair"][:1] * n
    return asked


def timed(address: str) -> tuple[float, float]:
    """Seconds until the last byte is there, and processor seconds (of server and reader)."""
    begun = time.perf_counter(), time.process_time()
    with urllib.request.urlopen(address, timeout=120) as response:
        response.read()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def measured(name: str, file: str | None, setup: dict, data: Path, n: int) -> list[str]:
    """Rows of the table."""
    model, adata = fitted(file, setup, data)
    explorer = Explorer(model, adata)
    rows = []
    begun = time.process_time()
    explorer.warm_up()
    warm = time.process_time() - begun
    with Server(Pages(explorer, name)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for kind, addresses in questions(model, explorer, n).items():
            took, worked = np.array([timed(server.address + address) for address in addresses]).T
            clock = f"{np.median(took):.2f} | {took.min():.2f} to {took.max():.2f}"
            rows.append(f"| {name} | {kind} | {np.median(worked):.2f} | {worked.max():.2f} | {clock} | {len(took)} |")
            print(rows[-1], flush=True)
        server.shutdown()
    shape = f"{adata.n_obs:,} cells x {adata.n_vars:,} genes"
    rows.append(f"| {name} | warming up in the background ({shape}) | {warm:.2f} | | | | 1 |")
    return rows


def main() -> None:
    """All screens that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--n", type=int, default=15, help="questions of each kind")
    options = parser.parse_args()
    rows = [row for name, (file, setup) in SCREENS.items() for row in measured(name, file, setup, options.data, options.n)]
    head = "| screen | question | processor s, median | most | by the clock, median | fewest to most | questions |\n" + "|---" * 7 + "|"
    text = (
        "# How long the explorer takes to answer\n\n"
        "`python benchmarks/explore.py`: default models, one thread, from the request to the last byte of the page; every question is a\n"
        "new one, but for the last kind. Warming up begins with the server, in the background: one effect in every context, then the\n"
        "left-out conditions of rankings; effects do not wait for these, a ranking does. Kang has one perturbation: nothing can be\n"
        "ranked, and warming up has met it in every context (before, its effects took 1.64 processor seconds, 2.49 at most). Processor\n"
        "seconds are what an idle machine takes; the clock is that of two cores that others used as well.\n\n"
        f"{head}\n" + "\n".join(rows) + "\n"
    )
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
