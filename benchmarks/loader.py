"""What it costs to leave the cells on disk: conversion, batches from memory, file and cache, a fit and generation in bounded memory.

    python benchmarks/loader.py write FILE --cells 200000 [--grouped]     a synthetic file (2,000 genes, 7 % of the counts are not zero)
    python benchmarks/loader.py run --sizes 50000 200000 5000000 --dir DIR [--out benchmarks/results/loader.json]
    python benchmarks/loader.py run --generate 50000 1000000 [--genes 500] --dir DIR

`run` writes files of these sizes into DIR (one that is there is taken), converts them, and starts every measurement in a process of its
own, so that peak memory is its own; the files are removed afterwards. Times of batches are processor time, which other work on the machine
does not change much; training from the cache is timed beside training from memory, in turn. Of more than a million cells, only the cache is
measured. `--generate` fits a simulated screen and asks for so many cells of ten conditions; results are added to those that are there.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time, thread_time

import numpy as np

GENES, DENSITY, CONDITIONS, CONTEXTS = 2000, 0.07, 200, 4
SETUP = {"perturbation_key": "perturbation", "control": "control", "match_keys": ("cell_type",)}
STEPS, PAIRS = 200, 7


def write(path: Path, n_cells: int, grouped: bool, seed: int = 0) -> None:
    """A file of random cells whose conditions shift a few genes, written a block at a time."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    draw = np.random.default_rng(seed)
    condition = np.minimum(draw.geometric(0.01, n_cells) - 1, CONDITIONS)  # some are rare; the control is 10 %
    condition[draw.random(n_cells) < 0.1] = 0
    context = draw.integers(0, CONTEXTS, n_cells)
    if grouped:
        order = np.lexsort((condition, context))
        condition, context = condition[order], context[order]
    names = np.array(["control", *(f"P{i:03d}" for i in range(1, CONDITIONS + 1))])
    kinds = np.array([f"type{i}" for i in range(CONTEXTS)])
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(condition, names),
            "cell_type": pd.Categorical.from_codes(context, kinds),
        },
        index=pd.Index([f"cell{i:09d}" for i in range(n_cells)]),
    )
    popular = draw.permutation(GENES)[: GENES // 4]
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=pd.Index([f"G{i:04d}" for i in range(GENES)])))
        for name in ("uns", "obsm", "varm", "obsp", "varp", "layers"):
            write_elem(file, name, {})
        x = file.create_group("X")
        x.attrs["encoding-type"], x.attrs["encoding-version"], x.attrs["shape"] = "csr_matrix", "0.1.0", (n_cells, GENES)
        data = x.create_dataset("data", (0,), maxshape=(None,), dtype="f4", chunks=(2**14,))
        indices = x.create_dataset("indices", (0,), maxshape=(None,), dtype="i4", chunks=(2**14,))
        indptr = np.zeros(n_cells + 1, dtype=np.int64)
        for start in range(0, n_cells, 8192):
            n = min(8192, n_cells - start)
            here = draw.random((n, GENES), dtype=np.float32) < DENSITY * (0.5 + 0.25 * (context[start : start + n, None] + 0.67) / 2)
            marked = popular[(condition[start : start + n, None] * 7 + np.arange(20)) % len(popular)]
            np.put_along_axis(here, marked, draw.random(marked.shape) < 0.6, axis=1)
            rows, columns = np.nonzero(here)
            values = draw.geometric(0.6, len(rows)).astype(np.float32)
            end = indptr[start] + len(rows)
            for dataset, part in ((data, values), (indices, columns)):
                dataset.resize((end,))
                dataset[indptr[start] : end] = part
            indptr[start + 1 : start + n + 1] = indptr[start] + np.cumsum(np.bincount(rows, minlength=n))
        x.create_dataset("indptr", data=indptr)


def peak() -> float:
    """MB of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(path: Path, place: str):
    """The declared AnnData, in memory or not."""
    import counterflow as cf
    from counterflow.data.stored import open_h5ad

    adata = cf.read_h5ad(path) if place == "memory" else open_h5ad(path)
    cf.CounterFlow.setup_anndata(adata, **SETUP)
    return adata


def measure_obs(path: Path) -> dict:
    """What the columns and names of the cells take by themselves."""
    import anndata  # noqa: F401
    import lightning  # noqa: F401

    from counterflow.data.stored import open_h5ad
    from counterflow.model import CounterFlow  # noqa: F401

    before = peak()
    adata = open_h5ad(path)
    return {"peak_mb": round(peak()), "obs_mb": round(peak() - before), "cells": adata.n_obs}


def measure_convert(path: Path) -> dict:
    """The cache, made anew."""
    from counterflow.data.convert import convert
    from counterflow.data.schema import Setup

    begun, worked = perf_counter(), process_time()
    target = convert(path, Setup.from_dict(SETUP), overwrite=True)
    seconds = perf_counter() - begun
    meta = json.loads((target / "meta.json").read_text())
    size = sum(file.stat().st_size for file in target.iterdir())
    return {
        "seconds": round(seconds, 1), "processor_seconds": round(process_time() - worked, 1), "cells_per_s": round(meta["cells"] / seconds),
        "peak_mb": round(peak()), "gb": round(size / 1e9, 3), "source_gb": round(path.stat().st_size / 1e9, 3),
    }  # fmt: skip


def measure_feed(path: Path, place: str) -> dict:
    """Processor time of rows as CSR and as dense log expression, per cell, of 8 sets of 64 cells and as many controls."""
    from counterflow.data.sampler import Sampler, build_groups
    from counterflow.data.schema import setup_of
    from counterflow.data.screen import read_screen
    from counterflow.spaces.base import log_normalise

    adata = opened(path, place)
    screen = read_screen(adata, setup_of(adata))
    sampler = Sampler(build_groups(screen.condition, screen.context, screen.is_control))
    steps = 30 if place == "file" else STEPS
    plans = [np.concatenate(sampler.draw(step)[:2]) for step in range(steps)]
    for rows in plans[:5]:
        screen.counts[rows]
    times = {"csr": [], "dense_log1p": []}
    for rows in plans:
        begun = thread_time()
        counts = screen.counts[rows]
        times["csr"].append(thread_time() - begun)
        log_normalise(counts, screen.library[rows]).toarray()
        times["dense_log1p"].append(thread_time() - begun)
    n = len(plans[0])
    return {name: round(1e6 * statistics.median(some) / n, 2) for name, some in times.items()} | {"peak_mb": round(peak())}


def measure_fit(path: Path, place: str, max_steps: int) -> dict:
    """A whole fit with the default recipe."""
    import counterflow as cf

    begun, worked = perf_counter(), process_time()
    model = cf.CounterFlow(opened(path, place))
    prepared = perf_counter()
    model.train(max_steps=max_steps, progress=False)
    return {
        "seconds": round(perf_counter() - begun, 1), "processor_seconds": round(process_time() - worked, 1),
        "until_training": round(prepared - begun, 1), "peak_mb": round(peak()),
    }  # fmt: skip


def measure_pairs(path: Path) -> dict:
    """Optimiser steps from memory (states looked up) and from the cache (read and encoded), in turn: cells per second."""
    import torch
    from lightning import Trainer  # noqa: F401

    import counterflow as cf
    from counterflow import training
    from counterflow.data.ledger import Ledger
    from counterflow.fitting import fit_space, states_of, training_steps

    torch.set_num_threads(1)
    models = {place: cf.CounterFlow(opened(path, place)) for place in ("memory", "cache")}
    feeds = {}
    for place, model in models.items():
        cells = model._train_cells
        fit_space(model.space, cells, 0, Ledger())
        feeds[place] = (cells, states_of(cells, model.space), model)
    taken: dict[str, list[float]] = {"memory": [], "cache": []}
    for pair in range(PAIRS + 1):
        for place in ("memory", "cache") if pair % 2 else ("cache", "memory"):
            cells, states, model = feeds[place]
            plan = {"n_sets": 8, "set_size": 64, "seed": pair, "start": 0, "stop": 100}
            steps = training_steps(cells, states, model.vocabulary, None, model.setup, anchors=False, **plan)
            module = model.build_module(None, model.vocabulary.seen)
            begun = perf_counter()
            training.fit(module, steps, None, lr=1e-3, weight_decay=0.01, seed=0, progress=False, accelerator="cpu")
            if pair:  # the first pair warms up
                taken[place].append(100 * 512 / (perf_counter() - begun))
    ratio = [cache / memory for cache, memory in zip(taken["cache"], taken["memory"], strict=True)]
    speeds = {f"{place}_cells_per_s": round(statistics.median(some)) for place, some in taken.items()}
    return speeds | {"ratio": round(statistics.median(ratio), 3), "ratios": [round(value, 3) for value in ratio]}


def fit_simulated(run: Path, n_genes: int) -> None:
    """A small fit on a simulated screen, default recipe."""
    from counterflow.cli import main
    from counterflow.data.simulate import simulate_screen

    screen = run.with_suffix(".h5ad")
    simulate_screen(n_genes=n_genes).adata.write_h5ad(screen)
    words = ["--setup.perturbation_key", "perturbation", "--setup.control", "control", "--setup.match_keys", "[cell_type]"]
    assert main(["fit", str(screen), *words, "--train.max_steps", "50", "--out", str(run), "--quiet", "--overwrite"]) == 0


def measure_generate(run: Path, n_cells: int, *more: str) -> dict:
    """`counterflow generate` for ten conditions."""
    from counterflow.cli import main

    model = json.loads((run / "model" / "model.json").read_text())
    names, out = model["vocabulary"]["seen"][:10], run.with_name("generated.h5ad")
    words = [word for name in names for word in ("--condition", name)]
    begun, worked = perf_counter(), process_time()
    assert main(["generate", str(run), *words, "--n_cells", str(n_cells // len(names)), "--out", str(out), "--quiet", *more]) == 0
    seconds, size = perf_counter() - begun, out.stat().st_size
    out.unlink()
    return {
        "genes": len(model["genes"]), "seconds": round(seconds, 1), "processor_seconds": round(process_time() - worked, 1),
        "cells_per_s": round(n_cells / seconds), "peak_mb": round(peak()), "gb": round(size / 1e9, 3),
    }  # fmt: skip


MEASURES = {
    "obs": measure_obs, "convert": measure_convert, "feed": measure_feed, "fit": measure_fit, "pairs": measure_pairs,
    "generate": measure_generate,
}  # fmt: skip


def alone(name: str, *arguments: str) -> dict:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "measure", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    print(name, *arguments, found, flush=True)
    return found


def run(folder: Path, sizes: list[int], generated: list[int], n_genes: int, out: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found: dict = json.loads(out.read_text()) if out.exists() else {"sizes": {}}
    found |= {"genes": GENES, "machine": f"{platform.machine()}, Python {platform.python_version()}"}

    def keep() -> None:
        out.write_text(json.dumps(found, indent=1) + "\n")
        out.with_suffix(".md").write_text(page(found))

    try:
        for n_cells in sizes:
            found["sizes"][str(n_cells)] = cells_on_disk(folder, n_cells)
            keep()
        if generated:
            fit_simulated(folder / "run", n_genes)
        for n_cells in generated:
            found.setdefault("generated", {})[f"{n_cells} x {n_genes}"] = alone("generate", folder / "run", str(n_cells))
            keep()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cells_on_disk(folder: Path, n_cells: int) -> dict:
    """Every measurement of a file of so many cells."""
    path = folder / f"cells{n_cells}.h5ad"
    if not path.exists():
        subprocess.run([sys.executable, __file__, "write", str(path), "--cells", str(n_cells)], check=True)
    here = {"obs": alone("obs", path), "feed": {}, "fit": {}}
    in_memory = n_cells <= 10**6
    if in_memory:
        here["feed"]["memory"] = alone("feed", path, "memory")
        here["feed"]["file"] = alone("feed", path, "file")
        here["fit"]["memory"] = alone("fit", path, "memory", 50)
        grouped = folder / "grouped.h5ad"
        subprocess.run([sys.executable, __file__, "write", str(grouped), "--cells", str(n_cells), "--grouped"], check=True)
        here["feed"]["grouped file"] = alone("feed", grouped, "file")
        grouped.unlink()
    here["convert"] = alone("convert", path)
    here["feed"]["cache"] = alone("feed", path, "cache")
    here["fit"]["cache"] = alone("fit", path, "cache", 50)
    if in_memory:
        here["pairs"] = alone("pairs", path)
    path.unlink()
    shutil.rmtree(path.with_name(path.name + ".cells"))
    return here


def page(found: dict) -> str:
    """The results as tables."""
    lines = [
        "# Cells on disk", "",
        f"Synthetic files, {found['genes']:,} genes, 7 % of the counts not zero, cells in random order ({found['machine']}). Written by "
        "`python benchmarks/loader.py run`. Seconds are of a machine with other work to do; peaks include 460 MB of libraries.", "",
        "| cells | conversion, s (processor s) | its peak MB | file GB | cache GB | names and columns alone, peak MB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for n, here in found["sizes"].items():
        convert = here["convert"]
        took, sizes = f"{convert['seconds']} ({convert['processor_seconds']})", f"{convert['source_gb']} | {convert['gb']}"
        lines.append(f"| {int(n):,} | {took} | {convert['peak_mb']} | {sizes} | {here['obs']['obs_mb']} |")
    lines += [
        "",
        "Batches (processor microseconds per cell):",
        "",
        "| cells | from | CSR rows | dense log1p | peak MB |",
        "|---|---|---|---|---|",
    ]
    for n, here in found["sizes"].items():
        lines += [
            f"| {int(n):,} | {place} | {one['csr']} | {one['dense_log1p']} | {one['peak_mb']} |" for place, one in here["feed"].items()
        ]
    lines += ["", "A whole fit of 50 steps (default recipe, three fits):", ""]
    lines += ["| cells | from | s (processor s) | peak MB |", "|---|---|---|---|"]
    for n, here in found["sizes"].items():
        for place, one in here["fit"].items():
            lines.append(f"| {int(n):,} | {place} | {one['seconds']} ({one['processor_seconds']}) | {one['peak_mb']} |")
    lines += ["", "Optimiser steps from the cache beside steps from memory, in turn:", ""]
    lines += ["| cells | memory, cells/s | cache, cells/s | ratio (median) |", "|---|---|---|---|"]
    for n, here in found["sizes"].items():
        if "pairs" in here:
            pairs = here["pairs"]
            lines.append(f"| {int(n):,} | {pairs['memory_cells_per_s']:,} | {pairs['cache_cells_per_s']:,} | {pairs['ratio']} |")
    if "generated" in found:
        lines += ["", "`counterflow generate`, ten conditions of a simulated screen in pca, default recipe:", ""]
        lines += ["| cells x genes | s (processor s) | cells/s | peak MB | file GB |", "|---|---|---|---|---|"]
        for name, one in found["generated"].items():
            n_cells, n_genes = map(int, name.split(" x "))
            took = f"{one['seconds']} ({one['processor_seconds']})"
            lines.append(f"| {n_cells:,} x {n_genes:,} | {took} | {one['cells_per_s']:,} | {one['peak_mb']} | {one['gb']} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("write")
    one.add_argument("file", type=Path)
    one.add_argument("--cells", type=int, default=200_000)
    one.add_argument("--grouped", action="store_true")
    two = verbs.add_parser("measure")
    two.add_argument("name", choices=MEASURES)
    two.add_argument("arguments", nargs="+")
    three = verbs.add_parser("run")
    three.add_argument("--dir", type=Path, required=True)
    three.add_argument("--sizes", type=int, nargs="+", default=[])
    three.add_argument("--generate", type=int, nargs="+", default=[])
    three.add_argument("--genes", type=int, default=500)
    three.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.json")
    options = parser.parse_args()
    if options.verb == "write":
        write(options.file, options.cells, options.grouped)
    elif options.verb == "measure":
        import warnings

        warnings.simplefilter("ignore")
        path, *rest = options.arguments
        print(json.dumps(MEASURES[options.name](Path(path), *(int(word) if word.isdigit() else word for word in rest))))
    else:
        run(options.dir, options.sizes, options.generate, options.genes, options.out)


if __name__ == "__main__":
    main()
