"""Two processes train as one does: gloo on the processor, in processes that are forked from this one as torchrun would start them.

What only real launchers show (a script started again, torchrun's own errors) is `slow`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback

import lightning as L
import numpy as np
import pytest
import torch

from counterflow import ConfigError, CounterFlow, DataError, training
from counterflow.backbones import BACKBONES
from counterflow.backbones.image_dit import image_dit
from counterflow.cli import main
from counterflow.data.images import ImageSteps
from counterflow.devices import names_of_all
from counterflow.diffusion.module import DiffusionModule
from counterflow.errors import ProcessError
from counterflow.module import FlowModule
from counterflow.nn.labels import LabelTable, class_ids

SMALL = {"backbone_kwargs": {"width": 8, "depth": 1}, "space_kwargs": {"n_components": 4}}
TWO = {"devices": 2, "strategy": "ddp"}
STEPS = {"max_steps": 10, "batch_size": 64, "set_size": 8, "accelerator": "cpu", "progress": False}
CONDITIONINGS = ("adaln", "cross", "in_context", "adaln_plain", "cross_layerscale")
EXACT = {"precision": "64-true"}  # Adam makes much of the last digits of small gradients


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun(rank, n):
    return {
        **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "GROUP_RANK": 0},
        "TORCHELASTIC_RUN_ID": "test",
    }


def srun(rank, n):
    here = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_NODELIST": "localhost"}
    return here | {"SLURM_NTASKS": n, "SLURM_NTASKS_PER_NODE": n, "SLURM_JOB_ID": 1234, "SLURM_JOB_NAME": "fit"}


STARTED_BY = {"torchrun": torchrun, "srun": srun}


def start(n, work, *arguments, launcher="torchrun") -> list[int]:
    """Ids of `n` processes that do it and end with its exit code."""
    port = free_port()
    sys.stdout.flush()
    pids = []
    for rank in range(n):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 99
        try:
            names = STARTED_BY[launcher](rank, n) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TEST_RANK": rank}
            os.environ.update({name: str(value) for name, value in names.items()})
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = work(*arguments) or 0
        except BaseException:  # a forked process must not come back into pytest
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pids


def ended(pids, within: float = 30) -> list[int]:
    """Their exit codes, or minus the signals; nobody is waited for longer than that."""
    codes: dict[int, int] = {}
    until = time.monotonic() + within
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            pytest.fail(f"still running after {within} s: {len(pids) - len(codes)} of {len(pids)} processes")
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def rank() -> int:
    return int(os.environ.get("TEST_RANK", "0"))


def outcome(model) -> dict:
    trust = {kind: (trust.mean, trust.spread) for kind, trust in model.trust.items()}
    return {"weights": model.module.state_dict(), "history": model.history, "trust": trust}


def train(adata, file, options, **how):
    """Train and leave behind what came out."""
    model = CounterFlow(adata, **SMALL | options)
    model.train(**STEPS | how)
    torch.save(outcome(model), f"{file}.{rank()}")
    model.save(f"{file}.model")


def came_out(file, rank=0):
    return torch.load(f"{file}.{rank}", weights_only=True)


def check_same(a, b, atol=1e-6):
    for name, weight in a["weights"].items():
        torch.testing.assert_close(weight, b["weights"][name], atol=atol, rtol=0)
    assert len(a["history"]) == len(b["history"]) > 0
    for before, now in zip(a["history"], b["history"], strict=True):
        assert now == pytest.approx(before, abs=1e-6)


class StopAt(L.Callback):
    """An error of somebody else's in the middle of a run."""

    def __init__(self, step, rank=None):
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            raise ValueError("enough")


@pytest.fixture
def watched(declared):
    """With validation cells."""
    last = sorted(set(declared.obs["perturbation"]) - {"control"})[-1]
    declared.obs["split"] = np.where(declared.obs["perturbation"] == last, "val", "train")
    CounterFlow.setup_anndata(declared, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
    return declared


@pytest.mark.parametrize(
    "options",
    [
        {"anchor": "none"},
        {"source": "noise", "coupling": "genot", "anchor": "none", "prediction": "x"},
        {"space": "raw", "space_kwargs": {}, "backbone": "dit", "backbone_kwargs": {"size": "XS", "genes_per_token": 10}},
    ],
    ids=["control", "genot", "raw"],
)
def test_two_processes_train_what_one_trains(watched, tmp_path, options):
    train(watched, tmp_path / "one", options, **EXACT)
    assert ended(start(2, lambda: train(watched, tmp_path / "two", options, **EXACT, **TWO))) == [0, 0]
    check_same(came_out(tmp_path / "one"), came_out(tmp_path / "two"))
    check_same(came_out(tmp_path / "two", rank=1), came_out(tmp_path / "two"), atol=0)
    assert "val_loss" in came_out(tmp_path / "two")["history"][-1]
    assert CounterFlow.load(tmp_path / "two.model").is_trained


def test_processes_forked_by_lightning_bring_the_weights_back(declared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(declared, tmp_path / "one", {"anchor": "none"}, **EXACT)
    train(declared, tmp_path / "two", {"anchor": "none"}, **EXACT, devices=2, strategy="ddp_fork")
    one, two = came_out(tmp_path / "one"), came_out(tmp_path / "two")
    check_same(one, two | {"history": one["history"]})
    assert two["history"] == []  # stays in the processes that are gone: docs/devices.md
    assert CounterFlow.load(tmp_path / "two.model").is_trained


def test_the_default_recipe_learns_the_same_trust_in_single_precision(declared, tmp_path):
    train(declared, tmp_path / "one", {})
    assert ended(start(2, lambda: train(declared, tmp_path / "two", {}, **TWO))) == [0, 0]
    one, two = came_out(tmp_path / "one"), came_out(tmp_path / "two")
    check_same(one, two, atol=1e-5)
    assert {k: pytest.approx(v, abs=1e-4) for k, v in one["trust"].items()} == two["trust"] != {}
    check_same(came_out(tmp_path / "two", rank=1), two, atol=0)


def test_each_process_computes_its_sets_and_together_they_are_the_step(declared, tmp_path):
    def look():
        seen, computed = [], []

        class Look(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                seen.append({"own": batch.own, "all": batch.target})

            def on_train_start(self, trainer, pl_module):
                pl_module.module.backbone.register_forward_hook(lambda network, inputs, output: computed.append(len(output)))

        train(declared, tmp_path / "two", {"anchor": "none"}, **TWO, callbacks=[Look()])
        assert computed == [32] * 10
        torch.save(seen, tmp_path / f"seen.{rank()}")

    assert ended(start(2, look)) == [0, 0]
    first, second = (torch.load(tmp_path / f"seen.{rank}", weights_only=True) for rank in range(2))
    assert len(first) == len(second) == 10
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["all"], b["all"])
        assert torch.equal(torch.cat([a["own"], b["own"]]).sort().values, torch.arange(64))
        assert (a["own"] // 8).unique().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_on_another_number_of_devices(declared, tmp_path, before, after):
    options = {"anchor": "none"}
    how = {1: {}, 2: TWO}

    def broken():
        with pytest.raises(ValueError, match="enough"):
            train(declared, tmp_path / "never", options, run_dir=tmp_path, callbacks=[StopAt(6)], **EXACT, **how[before])

    def resumed():
        state = tmp_path / "checkpoints" / "last.ckpt"
        train(declared, tmp_path / "end", options, run_dir=tmp_path, resume_from=state, **EXACT, **how[after])

    train(declared, tmp_path / "straight", options, **EXACT)
    assert ended(start(before, broken)) == [0] * before
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert ended(start(after, resumed)) == [0] * after
    check_same(came_out(tmp_path / "straight"), came_out(tmp_path / "end"))


def test_a_loss_that_is_not_finite_in_one_process_is_one_error_for_all(declared, tmp_path, monkeypatch):
    def explode():
        model = CounterFlow(declared, **SMALL, anchor="none")
        whole = FlowModule.loss

        class Explode(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 5 and rank() == 1:
                    group = batch.group[batch.own[0]]
                    monkeypatch.setattr(FlowModule, "loss", lambda *a: whole(*a) * (torch.nan if group in a[1].group else 1))

        with pytest.raises((DataError, ProcessError)) as caught:
            model.train(**STEPS, **TWO, callbacks=[Explode()])
        (tmp_path / f"said.{rank()}").write_text(f"{caught.type.__name__}: {caught.value}")

    assert ended(start(2, explode)) == [0, 0]
    first, second = ((tmp_path / f"said.{rank}").read_text() for rank in range(2))
    assert first.startswith("DataError: the loss became nan at step 5 in 1 of its sets ('")  # the second process saw it, the first says it
    assert second.startswith("ProcessError: stopped together with the first process, which says why")


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_the_others_do_not_wait_for_a_process_that_is_gone(declared, tmp_path, how):
    class Die(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5 and trainer.global_rank == 1:
                if how == "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("enough")

    def die():
        try:
            CounterFlow(declared, **SMALL, anchor="none").train(**STEPS, **TWO, callbacks=[Die()])
        except ProcessError as error:
            (tmp_path / "said").write_text(str(error))
            return 2
        except ValueError:
            return 3
        return 0

    begun = time.monotonic()
    assert ended(start(2, die)) == [2, -signal.SIGKILL if how == "is killed" else 3]
    assert time.monotonic() - begun < 30
    assert "another of the 2 processes of this training ended" in (tmp_path / "said").read_text()


def test_a_signal_to_one_process_stops_all_at_the_same_step(declared, tmp_path):
    class Ask(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4 and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def asked():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(42))  # what a signal does after the state was written
        CounterFlow(declared, **SMALL, anchor="none").train(**STEPS, **TWO, callbacks=[Ask()], run_dir=tmp_path)

    assert ended(start(2, asked)) == [42, 42]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_processes_that_go_on_from_different_states_are_told(declared, tmp_path):
    with pytest.raises(ValueError, match="enough"):
        train(declared, tmp_path / "never", {"anchor": "none"}, run_dir=tmp_path, callbacks=[StopAt(6)])

    def resumed():
        state = tmp_path / "checkpoints" / "last.ckpt" if rank() == 1 else None
        with pytest.raises((ConfigError, ProcessError)) as caught:
            train(declared, tmp_path / "end", {"anchor": "none"}, resume_from=state, **TWO)
        (tmp_path / f"said.{rank()}").write_text(str(caught.value))

    assert ended(start(2, resumed)) == [0, 0]
    assert "process 0 would begin at step 0, another one at step 6" in (tmp_path / "said.0").read_text()


def test_what_cannot_be_shared_is_refused_before_any_process_is_started(declared, monkeypatch):
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("a process was started"))
    model = CounterFlow(declared, **SMALL, anchor="none")
    with pytest.raises(ConfigError, match=r"n_sets=8 sets per step cannot be shared evenly by 3 devices: take batch_size=48 "):
        model.train(**STEPS, devices=3, strategy="ddp")
    with pytest.raises(ConfigError, match="max_seconds measures the processor seconds of one process"):
        model.train(max_seconds=3, devices=2, strategy="ddp")


def test_torchrun_must_start_as_many_processes_as_are_asked_for(declared, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"torchrun started 4 processes, and devices=1 on num_nodes=1 ask for 1"):
        CounterFlow(declared, **SMALL, anchor="none").train(**STEPS)


def test_images_are_shared_evenly():
    steps = ImageSteps(torch.arange(10.0).reshape(10, 1, 1, 1), class_ids(torch.arange(10)), batch_size=6, seed=0, stop=2)
    parts = [steps.share(rank, 2) for rank in range(2)]
    assert steps.batch(1).own is None and all(torch.equal(part.batch(1).target, steps.batch(1).target) for part in parts)
    assert torch.equal(torch.cat([part.batch(1).own for part in parts]).sort().values, torch.arange(6))
    with pytest.raises(ConfigError, match="batch_size=6 images cannot be shared evenly by 4 devices"):
        steps.share(0, 4)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_loss_of_images_is_the_mean_over_the_processes(kind):
    steps = ImageSteps(torch.randn(20, 1, 8, 8), class_ids(torch.arange(20) % 3), batch_size=6, seed=0, stop=2)
    network = image_dit((1, 8, 8), 16, width=16, depth=1, n_heads=2, patch=4, objective="ddpm" if kind == "diffusion" else "flow").double()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    labels = LabelTable(3, 16).double()
    options = {"source": "noise", "coupling": "independent"}
    module = DiffusionModule(network, labels) if kind == "diffusion" else FlowModule(network, labels, (1, 8, 8), **options)

    def loss(part):
        batch = part.batch(1)
        return module.loss(batch._replace(target=batch.target.double()), torch.Generator().manual_seed(0))

    parts = torch.stack([loss(steps.share(rank, 3)) for rank in range(3)])
    assert parts.std() > 0
    torch.testing.assert_close(parts.mean(), loss(steps))


FIT = (
    *("--setup.perturbation_key", "perturbation", "--setup.control", "control", "--train.accelerator", "cpu"),
    *("--train.max_steps", "10", "--train.batch_size", "32", "--train.set_size", "8", "--train.devices", "2", "--train.strategy", "ddp"),
    *("--model.backbone_kwargs.width", "8", "--model.backbone_kwargs.depth", "1", "--model.space_kwargs.n_components", "4"),
)  # fmt: skip


@pytest.fixture
def screen(tiny_screen, tmp_path):
    tiny_screen.adata.write_h5ad(tmp_path / "screen.h5ad")
    return str(tmp_path / "screen.h5ad")


@pytest.mark.parametrize("launcher", STARTED_BY)
def test_at_the_command_line_the_first_process_writes_and_speaks(screen, tmp_path, capfd, launcher):
    run = tmp_path / "run"
    assert ended(start(2, main, ["fit", screen, *FIT, "--out", str(run)], launcher=launcher)) == [0, 0]
    said = capfd.readouterr()
    assert said.out.count("fitted mlp on pca") == 1 and said.err.count("warning: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "screen.h5ad"]
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "metrics.csv", "model", "report.html", "run.json", "sample.json",
    ]  # fmt: skip
    assert main(["replay", str(run), "--quiet"]) == 0  # on one device
    assert main(["fit", screen, *FIT, "--train.devices", "1", "--train.strategy", "auto", "--out", str(run), "--resume"]) == 0


@pytest.mark.parametrize(
    ("what", "codes", "says"),
    [
        ("is killed", [2, -signal.SIGKILL], "error: another of the 2 processes of this training ended"),
        ("nan", [2, 0], "error: the loss became nan"),
    ],
)
def test_at_the_command_line_what_ends_a_process_is_one_error(screen, tmp_path, capfd, monkeypatch, what, codes, says):
    whole, run = training.FlowTraining.training_step, str(tmp_path / "run")

    def deadly(self, batch, batch_idx):
        if rank() == 1 and self.global_step == 5:
            if what == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            batch.target[:] = torch.nan
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(training.FlowTraining, "training_step", deadly)
    options = ["fit", screen, *FIT, "--model.coupling", "independent", "--quiet", "--out", run]
    assert ended(start(2, main, options)) == codes
    said = capfd.readouterr().err
    assert said.startswith(says) and said.count("\n") == 1
    assert main([*options, "--resume", "--train.devices", "1", "--train.strategy", "auto"]) == 0
    assert CounterFlow.load(run).is_trained


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["ours", "torchrun"])
def test_launchers(screen, tmp_path, launcher):
    verb = [*launcher, "-m", "counterflow.cli", "fit", screen, *FIT, "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *verb], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fitted mlp on pca") == 1 and CounterFlow.load(tmp_path / "run").is_trained


def test_names_of_one_process_are_its_own():
    class Alone:
        world_size = 1

    assert names_of_all(Alone(), ["a"]) == ["a"]


@pytest.mark.parametrize(
    ("backbone", "conditioning", "pool"),
    [
        (name, how, pool)
        for name in BACKBONES
        for how, pool in [*((how, "sum") for how in CONDITIONINGS), ("adaln", "attention")]
        if name != "image_dit" and (name not in ("mlp", "dynamics") or how in ("adaln", "cross"))
    ],
)
def test_every_parameter_gets_a_gradient(screen_for, backbone, conditioning, pool):
    """Processes wait for each other's gradients: a parameter that the loss does not depend on would end a run on several devices."""
    missing = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            missing.extend(name for name, weight in pl_module.named_parameters() if weight.grad is None)

    adata, setup = screen_for(backbone)
    CounterFlow.setup_anndata(adata, **setup)
    model = CounterFlow(adata, backbone=backbone, conditioning=conditioning, anchor="none", encoder_kwargs={"pool": pool})
    model.train(**STEPS | {"max_steps": 1, "batch_size": 8}, callbacks=[Look()])
    assert missing == []


def test_weights_without_a_part_in_the_loss_are_an_error_that_says_the_option(declared, tmp_path):
    options = {"anchor": "none", "conditioning": "cross", "encoder_kwargs": {"pool": "attention"}}  # nobody reads the pooled vector

    def refused():
        with pytest.raises((ConfigError, ProcessError)) as caught:
            train(declared, tmp_path / "never", options, **TWO)
        (tmp_path / f"said.{rank()}").write_text(str(caught.value))

    assert ended(start(2, refused)) == [0, 0]
    assert "give strategy='ddp_find_unused_parameters_true'" in (tmp_path / "said.0").read_text()
    train(declared, tmp_path / "one", options, **EXACT)
    how = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
    assert ended(start(2, lambda: train(declared, tmp_path / "two", options, **EXACT, **how))) == [0, 0]
    check_same(came_out(tmp_path / "one"), came_out(tmp_path / "two"))
