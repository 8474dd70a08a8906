"""How fast each backbone trains and samples in each space, in cells per second, and the memory it takes.

    python benchmarks/throughput.py [--device cpu|cuda] [--steps 20] [--quick] [--threads 1] [--out FILE]

Each case runs in a process of its own, so that peak memory is its own: resident memory on the CPU (libraries included), allocated
memory on the GPU. The median over rounds is kept. Sampling is `predict` from control cells with the default solver, counts included.
Import times of the package and of `counterflow --help` are measured as well.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

BACKBONES, SPACES = ("mlp", "dit", "set", "ssm"), ("pca", "latent", "raw")
BATCH = 256  # cells per optimiser step, and per block of the solver


def measure(backbone: str, space: str, *, device: str, steps: int, rounds: int, threads: int, n_genes: int) -> dict:
    """One case, in this process."""
    import torch

    import counterflow as cf

    torch.set_num_threads(threads)
    adata = cf.simulate_screen(n_genes=n_genes, n_perturbations=8, n_pairs=8, cells_per_condition=64, cells_control=512).adata
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
    model = cf.CounterFlow(adata, backbone=backbone, space=space, space_kwargs={"max_epochs": 1} if space == "latent" else None)
    model.train(max_steps=1, batch_size=BATCH, accelerator="cpu", progress=False)  # fits the space
    train = [_training_round(model, device, steps) for _ in range(rounds + 1)][1:]  # the first one warms up
    model.module.to(device)
    controls = adata[adata.obs["perturbation"] == "control"][:BATCH].copy()
    name = model.vocabulary.entities[0]
    sample = [_seconds(lambda: model.predict(controls, name), device) for _ in range(rounds + 1)][1:]
    return {
        "backbone": backbone,
        "space": space,
        "genes": n_genes,
        "state": list(model.space.state_shape),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "train_cells_per_s": round(BATCH * steps / statistics.median(train)),
        "sample_cells_per_s": round(len(controls) / statistics.median(sample)),
        "peak_memory_mb": round(_peak_bytes(device) / 2**20),
    }


def _training_round(model, device: str, steps: int) -> float:
    """Seconds of `steps` optimiser steps as the trainer takes them: batch, loss, gradient, clipping, AdamW."""
    import torch

    from counterflow.fitting import states_of, training_steps
    from counterflow.processor import at_work
    from counterflow.types import Batch, ConditionIds

    cells = model._train_cells
    plan = {"n_sets": BATCH // 64, "set_size": 64, "seed": 0, "start": 0, "stop": steps}
    shift = None if model.rule is None else model.rule.states.anchor
    batches = training_steps(cells, states_of(cells, model.space), model.vocabulary, shift, model.setup, anchors=True, **plan)
    module = model.module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def to_device(batch: Batch) -> Batch:
        ids = ConditionIds(*(part.to(device) for part in batch.ids))
        return Batch(batch.target.to(device), batch.control.to(device), ids, batch.group.to(device), batch.library.to(device))

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            module.loss(to_device(batch), generator).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    with at_work(module):
        seconds = _seconds(run, device)
    module.eval()
    return seconds


def _seconds(work, device: str) -> float:
    import torch

    start = perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def import_seconds(rounds: int) -> dict[str, float]:
    """Median seconds of a fresh interpreter, less that of an empty one."""

    def seconds(*command: str) -> float:
        times = []
        for _ in range(rounds):
            start = perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(perf_counter() - start)
        return statistics.median(times)

    empty = seconds("-c", "pass")
    return {
        "import counterflow": round(seconds("-c", "import counterflow") - empty, 3),
        "counterflow --help": round(seconds("-c", "from counterflow.cli import main; main(['--help'])") - empty, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--genes", type=int, default=250)
    parser.add_argument("--quick", action="store_true", help="2 steps, 1 round, 60 genes: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/throughput_DEVICE.json; nothing with --quick")
    parser.add_argument("--case", nargs=2, metavar=("BACKBONE", "SPACE"), help="one case, printed as JSON")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rounds, options.genes = 2, 1, 60
    sizes = {"steps": options.steps, "rounds": options.rounds, "threads": options.threads}
    if options.case:
        print(json.dumps(measure(*options.case, device=options.device, n_genes=options.genes, **sizes)))
        return
    rows = []
    for backbone in BACKBONES:
        for space in SPACES:
            own = [*sys.argv[1:], "--case", backbone, space]
            done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    result = {"device": _device_name(options.device), **sizes, "batch": BATCH, "seconds": import_seconds(options.rounds), "rows": rows}
    print(result["seconds"])
    out = options.out or (None if options.quick else Path(__file__).parent / "results" / f"throughput_{options.device}.json")
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, torch {torch.__version__}"


if __name__ == "__main__":
    main()
