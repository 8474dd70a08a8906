"""What `benchmarks/speed.py` times of ours: one case a process, processor seconds of one thread, one JSON line a figure.

    python benchmarks/speed_cases.py CASE [--workload FILE.h5ad] [--rounds 3]

Variants of one case take turns within the process (A B A B), and the median of each is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

START = time.perf_counter()
CELLS, GENES, BATCH, EULER_STEPS = 20_000, 2_000, 1024, 20
MLP_3M = {"width": 356, "depth": 4}  # 3.1 million parameters, as the peers' small networks have


def say(**figures) -> None:
    print(json.dumps(figures), flush=True)


def in_turn(runs: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Processor seconds of each call, the calls taking turns."""
    for run in runs.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def report(case: str, times: dict[str, list[float]], work: float = 1.0, unit: str = "ms", **more) -> None:
    """Medians and extremes, as a rate (`work` per second) or in milliseconds."""
    for name, seconds in times.items():
        values = [work / s if unit.endswith("/s") else 1e3 * s / work for s in seconds]
        say(case=case, variant=name, unit=unit, median=statistics.median(values), low=min(values), high=max(values), **more)


def workload(path: Path | None):
    """Counts of 20,000 cells x 2,000 genes under 50 perturbations: the peers' file, or a simulated screen of that size."""
    import anndata
    import numpy as np

    import counterflow as cf

    if path is None:
        adata = cf.simulate_screen(n_genes=GENES, n_perturbations=50, n_pairs=0, cells_per_condition=360, cells_control=2_000).adata
        match = ()
    else:
        adata = anndata.read_h5ad(path)
        adata = anndata.AnnData(adata.layers["counts"].astype(np.float32), obs=adata.obs, var=adata.var)
        match = ("cell_type",)
    split = {"split_key": "split"} if "split" in adata.obs else {}
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=match, **split)
    return adata


def model_of(path: Path | None, space: str = "pca", **kwargs):
    """A model whose space is fitted, and the feed of its training steps."""
    import counterflow as cf
    from counterflow.data.ledger import Ledger
    from counterflow.fitting import fit_space, states_of

    model = cf.CounterFlow(workload(path), backbone="mlp", space=space, anchor="none", **kwargs)
    cells = model._train_cells
    fit_space(model.space, cells, 0, Ledger.unknown())
    return model, cells, states_of(cells, model.space)


def steps_of(model, cells, states, n: int):
    from counterflow.fitting import training_steps

    plan = {"n_sets": BATCH // 256, "set_size": 256, "seed": 0, "start": 0, "stop": n}
    return training_steps(cells, states, model.vocabulary, None, model.setup, anchors=False, **plan)


def trained_steps(model, cells, states, n: int, *, coupling: str, precision: str) -> list[float]:
    """Processor seconds of each step of a real fit: batch, coupling, network, clipping, AdamW, average, log, Lightning."""
    from counterflow.callbacks import Stopwatch
    from counterflow.training import fit

    watch = Stopwatch(1e9)
    module = model.build_module(None, frozenset(model.vocabulary.entities))
    module.coupling = coupling
    fit(
        module, steps_of(model, cells, states, n), None, lr=1e-4, weight_decay=1e-2, seed=0, progress=False, accelerator="cpu",
        precision=precision, callbacks=[watch],
    )  # fmt: skip
    import numpy as np

    return np.diff(watch.ends)[2:].tolist()


def bare_step(module, batch, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW of the same network on one batch that is ready."""
    import torch

    from counterflow.flow.path import interpolate
    from counterflow.types import Condition

    with torch.no_grad():
        condition = Condition(*(part.detach() for part in module.encoder(batch.ids)))
        t = torch.rand(len(batch.target))
        x_t, velocity = interpolate(batch.control, batch.target, t)
    optimizer = torch.optim.AdamW(module.backbone.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            loss = (module.backbone(x_t, t, condition) - velocity).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(options: argparse.Namespace, *, space: str = "pca", steps: int = 14, **kwargs) -> None:
    """Training steps of the whole engine, and of the bare network on the same batches."""
    kwargs = kwargs or {"backbone_kwargs": MLP_3M}
    model, cells, states = model_of(options.workload, space, **kwargs)
    module = model.build_module(None, frozenset(model.vocabulary.entities))
    batch = steps_of(model, cells, states, 1).batch(0)
    kinds = [(c, p) for p in ("32-true", "bf16-mixed") for c in ("ot", "independent")]
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for coupling, precision in kinds:
            taken = trained_steps(model, cells, states, steps, coupling=coupling, precision=precision)
            times.setdefault(f"fit {coupling} {precision}", []).append(statistics.median(taken))
        for precision in ("32-true", "bf16-mixed"):
            step = bare_step(module, batch, precision)
            taken = in_turn({"step": step}, steps, 3)["step"]
            times.setdefault(f"bare {precision}", []).append(statistics.median(taken))
    report(options.case, times, BATCH, "cells/s", parameters=sum(w.numel() for w in module.parameters()), peak_mb=peak_mb())


def sample(options: argparse.Namespace) -> None:
    """Control states moved by the flow: by the default solver, in both precisions, and end to end with counts of 2,000 genes."""
    import torch

    from counterflow.prediction import solve
    from counterflow.sampling import Sampling
    from counterflow.types import ConditionSpec

    model, cells, states = model_of(options.workload, backbone_kwargs=MLP_3M)
    randomise(model.module)
    rows = cells.is_control.nonzero()[0][:BATCH]
    some, x = cells.rows(rows), states(rows)
    name = model.vocabulary.entities[0]
    ids, factual = model._ids(ConditionSpec((name,), (1.0,), 0.0), some), model._ids(ConditionSpec(), some)
    module = model.module.eval()

    def moved(solver: str, precision: str) -> torch.Tensor:
        n_steps = EULER_STEPS if solver == "euler" else None
        return solve(module, x, None, ids, factual, Sampling(solver, n_steps, precision="bf16-mixed" if precision == "bf16" else "32-true"))

    exact = moved("dopri5", "fp32")
    scale = (exact - x).square().mean().sqrt()
    runs = {
        f"{solver} {precision}": partial(moved, solver, precision) for solver in ("euler", "midpoint") for precision in ("fp32", "bf16")
    }
    times = in_turn(runs, options.rounds)
    for name, run in runs.items():
        error = float((run() - exact).square().mean().sqrt() / scale)
        report(options.case, {name: times[name]}, len(x), "cells/s", error=error)
    report(options.case, in_turn({"dopri5 fp32": partial(moved, "dopri5", "fp32")}, 1, 0), len(x), "cells/s", error=0.0, peak_mb=peak_mb())


def randomise(module) -> None:
    """A fresh network ends in zeros: its flow would be no work for an adaptive solver."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3 / max(1, weight.shape[-1]) ** 0.5)


def predict(options: argparse.Namespace) -> None:
    """From control cells to counterfactual counts of 2,000 genes, as a user calls it."""
    model, cells, _ = model_of(options.workload, backbone_kwargs=MLP_3M)
    model.train(max_steps=2, batch_size=BATCH, progress=False, accelerator="cpu")
    adata = model.adata[model._screen.is_control][:BATCH].copy()
    name = model.vocabulary.entities[0]
    report(options.case, in_turn({"predict": lambda: model.predict(adata, name)}, options.rounds), len(adata), "cells/s", peak_mb=peak_mb())


def raw(options: argparse.Namespace) -> None:
    """2,000 genes themselves as the state, 8 million parameters."""
    train(options, space="raw", steps=8, backbone_kwargs={"width": 512, "depth": 4})


def first_step(options: argparse.Namespace) -> None:
    """Wall seconds from the start of the process to the end of the first optimiser step (file, space and features included)."""
    import counterflow as cf
    from counterflow.callbacks import Stopwatch

    model = cf.CounterFlow(workload(options.workload), backbone="mlp", space="pca", backbone_kwargs=MLP_3M)
    watch = First()
    model.train(max_steps=2, batch_size=BATCH, progress=False, accelerator="cpu", callbacks=[watch.callback(Stopwatch)])
    say(case=options.case, variant="fit", unit="s", median=watch.seconds, low=watch.seconds, high=watch.seconds, peak_mb=peak_mb())


class First:
    """When the first step was done."""

    seconds = 0.0

    def callback(self, kind):
        """A callback of that kind that notes it."""
        first = self

        class Note(kind):
            def on_train_batch_end(self, *arguments):
                first.seconds = first.seconds or time.perf_counter() - START

        return Note(1e9)


def dit(options: argparse.Namespace) -> None:
    """Forward and backward of four blocks of width 256 over 8 x 256 tokens."""
    import torch

    from counterflow.nn.attention import SelfAttention
    from counterflow.nn.trunk import Trunk
    from counterflow.types import Condition

    width, tokens, cells = 256, 256, 8
    trunk = Trunk(width, 4, width, lambda: SelfAttention(width, 4))
    x, t = torch.randn(cells, tokens, width, requires_grad=True), torch.rand(cells)
    condition = Condition(torch.randn(cells, width), torch.randn(cells, 2, width), torch.ones(cells, 2, dtype=torch.bool))
    run = forward_backward(trunk, lambda: trunk(x, t, condition)[0])
    report(
        options.case,
        in_turn({p: partial(run, p) for p in ("fp32", "bf16")}, options.rounds),
        parameters=sum(p.numel() for p in trunk.parameters()),
    )


def forward_backward(module, call: Callable) -> Callable[[str], None]:
    import torch

    def run(precision: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = call()
        y.float().square().mean().backward()
        module.zero_grad()

    return run


def ssm(options: argparse.Namespace) -> None:
    """Forward and backward of one mixer of inner width 512 over 2 x L tokens: the causal one of Mamba-2, and ours for genes."""
    import torch

    from counterflow.nn.mamba import Mamba2Mixer
    from counterflow.nn.ssm import BidirectionalSSM

    for length in (256, 512, 1024, 2048):
        x = torch.randn(2, length, 256, requires_grad=True)
        mixers = {
            "mamba2": Mamba2Mixer(256, head_width=64, state=16),
            "two-way": BidirectionalSSM(256, 8),
            "unordered": BidirectionalSSM(256, 8, order="none"),
        }
        runs = {
            f"{name} {p} L={length}": partial(forward_backward(mixer, partial(mixer, x)), p)
            for name, mixer in mixers.items()
            for p in ("fp32", "bf16")
        }
        report(options.case, in_turn(runs, options.rounds))


def coupling(options: argparse.Namespace) -> None:
    """1,024 pairs of one group in 50 dimensions: the time, and the share of the exact plan's gain over random pairs."""
    import torch

    from counterflow.flow.coupling import COUPLINGS, ot

    generator = torch.Generator().manual_seed(0)
    source = torch.randn(BATCH, 50, generator=generator)
    target = torch.randn(BATCH, 50, generator=generator) * 1.5 + 0.5 * torch.randn(1, 50, generator=generator)

    def cost(rows) -> float:
        return float((source[rows] - target).square().sum(1).mean())

    runs = {name: partial(COUPLINGS[name], source, target, generator) for name in ("ot", "independent")}
    runs |= {f"ot, {n} at a time": partial(ot, source, target, generator, max_cells=n) for n in (64, 128, 512, BATCH)}
    best, chance = cost(ot(source, target, generator, max_cells=BATCH)), statistics.mean(cost(torch.randperm(BATCH)) for _ in range(20))
    for name, seconds in in_turn(runs, options.rounds).items():
        gain = statistics.mean((chance - cost(runs[name]())) / (chance - best) for _ in range(3))
        report(options.case, {name: seconds}, gain=gain)


def peak_mb() -> int:
    from counterflow.memory import peak_memory

    return round(peak_memory() / 2**20)


CASES = {case.__name__: case for case in (train, raw, sample, predict, first_step, dit, ssm, coupling)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    from counterflow.processor import quick_products

    torch.set_num_threads(1)
    with quick_products():  # as in every fit and prediction
        CASES[options.case](options)


if __name__ == "__main__":
    main()
