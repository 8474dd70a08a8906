"""A run may end at any moment, by a kill, a signal or a full disk; it goes on to the same bits, and nothing whole is ever lost.

Processes are forked from this one, which has everything imported: a fit takes a second.
"""

from __future__ import annotations

import csv
import functools
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from counterflow import CheckpointError, CounterFlow, checkpoint, training
from counterflow.cli import feed, main
from counterflow.data import h5_parts, h5_writer, stored
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.resuming import planned_steps

SCREEN = SMALL | {"n_genes": 30, "n_perturbations": 4, "n_pairs": 3}
FIT = (
    *("--setup.perturbation_key", "perturbation", "--setup.control", "control", "--quiet"),
    *("--train.max_steps", "15", "--train.batch_size", "32", "--train.set_size", "16"),
    *("--model.backbone_kwargs.width", "8", "--model.backbone_kwargs.depth", "1", "--model.space_kwargs.n_components", "4"),
)  # fmt: skip
MODEL = ("weights.safetensors", "arrays.safetensors", "model.json")


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> str:
    """A file with 295 cells."""
    path = tmp_path_factory.mktemp("data") / "screen.h5ad"
    simulate_screen(**SCREEN).adata.write_h5ad(path)
    return str(path)


@pytest.fixture(scope="module")
def straight(screen, tmp_path_factory):
    """A run that nobody interrupted: what it wrote, and how long it took."""
    runs = tmp_path_factory.mktemp("straight")
    assert fit(screen, runs / "here") == 0  # everything is imported now
    begun = time.monotonic()
    assert ended(start(fit, screen, runs / "forked")) == 0
    seconds = time.monotonic() - begun
    assert result(runs / "here") == result(runs / "forked")
    return result(runs / "here"), seconds


def result(run: Path) -> dict[str, bytes]:
    return {name: (run / "model" / name).read_bytes() for name in MODEL} | {"metrics": (run / "metrics.csv").read_bytes()}


def fit(screen: str, run: Path, *more: str) -> int:
    return main(["fit", screen, *FIT, *more, "--out", str(run)])


def go_on(screen: str, run: Path, *more: str) -> int:
    return fit(screen, run, *more, *(["--resume"] if run.exists() else []))


def start(work, *arguments) -> int:
    """The id of a new process that does it and ends with its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work(*arguments) or 0
    except BaseException:  # a forked process must not come back into pytest
        traceback.print_exc()
    os._exit(code)


def ended(pid: int) -> int:
    """The exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check_steps(run: Path) -> None:
    """No step is lost or repeated."""
    with (run / "metrics.csv").open() as handle:
        steps = [int(row["step"]) for row in csv.DictReader(handle)]
    assert steps == list(range(15))


def kill_and_go_on(screen, straight, run, after: float) -> bool:
    """Whether the kill came before the end; what is there afterwards is what an uninterrupted run gives."""
    pid = start(fit, screen, run)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    killed = ended(pid) == -signal.SIGKILL
    assert ended(start(go_on, screen, run)) == 0
    assert result(run) == straight[0]
    check_steps(run)
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []
    return killed


def test_ten_random_kills_are_resumed_to_the_same_bits(screen, straight, tmp_path):
    draw = np.random.default_rng(0)
    for n in range(10):
        kill_and_go_on(screen, straight, tmp_path / f"run{n}", draw.uniform(0.3, 1.0) * straight[1])


def test_with_the_model_a_run_is_whole(screen, straight, tmp_path):
    run = tmp_path / "run"

    def die_when_saved() -> int:
        whole = CounterFlow.save

        def deadly(self, *arguments, **options):
            whole(self, *arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        CounterFlow.save = deadly
        return fit(screen, run)

    assert ended(start(die_when_saved)) == -signal.SIGKILL
    assert result(run) == straight[0]
    assert main(["replay", str(run), "--sample", "--quiet"]) == 0


@pytest.mark.slow
def test_a_hundred_random_kills_are_resumed_to_the_same_bits(screen, straight, tmp_path):
    draw, killed, tried = np.random.default_rng(int(os.environ.get("COUNTERFLOW_KILL_SEED", "1"))), 0, 0
    while killed < 100:
        tried += 1
        killed += kill_and_go_on(screen, straight, tmp_path / f"run{tried}", draw.uniform(0, 1) * straight[1])
    print(f"\n{killed} kills, {killed} clean resumes, {tried - killed} came too late; a run takes {straight[1]:.1f} s")


def die_in_fit(number: int, step: int, screen: str, run: Path, *more: str) -> int:
    """Kill this process in the `number`-th fit of a run, at the beginning of a step."""
    begun = []
    whole, between = training.fit, training.Keeper.on_train_batch_start

    @functools.wraps(whole)
    def counted(*arguments, **options):
        begun.append(arguments)
        return whole(*arguments, **options)

    def deadly(self, trainer, *rest):
        between(self, trainer, *rest)
        if len(begun) == number and trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    training.fit, training.Keeper.on_train_batch_start = counted, deadly
    return go_on(screen, run, *more)


def note_steps(log: Path, screen: str, run: Path, *more: str) -> int:
    """Go on, and write down which steps of which fits are taken."""
    between = training.Keeper.on_train_batch_start

    def noted(self, trainer, *rest):
        with log.open("a") as handle:
            handle.write(f"{self.path.name} {trainer.global_step}\n")
        between(self, trainer, *rest)

    training.Keeper.on_train_batch_start = noted
    return go_on(screen, run, *more)


def test_a_kill_in_the_third_fit_costs_only_what_that_fit_had_not_kept(screen, straight, tmp_path):
    run, log = tmp_path / "run", tmp_path / "steps"
    assert ended(start(die_in_fit, 3, 8, screen, run)) == -signal.SIGKILL
    assert ended(start(note_steps, log, screen, run)) == 0
    taken = [line.split() for line in log.read_text().splitlines()]
    assert [int(step) for _, step in taken] == list(range(8, 15)) and {name[:5] for name, _ in taken} == {"part-"}
    assert result(run) == straight[0]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_early_stopping_stops_where_it_would_have(screen, straight, tmp_path):
    del straight  # it has everything imported
    data = anndata.read_h5ad(screen)
    one = data.obs["perturbation"].cat.categories[-1]
    data.obs["split"] = np.where(data.obs["perturbation"] == one, "val", "train")
    data.write_h5ad(tmp_path / "watched.h5ad")
    watched = ("--setup.split_key", "split", "--train.early_stopping", "true", "--train.trainer_kwargs.patience", "2", "--train.lr", "0.3")
    arguments = (str(tmp_path / "watched.h5ad"),)
    assert ended(start(fit, *arguments, tmp_path / "straight", *watched)) == 0
    whole = torch.load(tmp_path / "straight" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 3 < whole["global_step"] < 15 and whole["finished"]
    run, step = tmp_path / "killed", whole["global_step"] - 1
    assert ended(start(die_in_fit, 1, step, *arguments, run, *watched)) == -signal.SIGKILL
    assert ended(start(go_on, *arguments, run, *watched)) == 0
    assert result(run) == result(tmp_path / "straight")


def test_a_budget_in_seconds_is_measured_once(screen, tmp_path):
    timed = ("--train.max_seconds", "0.6")
    words = tuple(word for word in FIT if word not in ("--train.max_steps", "15"))

    def run_timed(*more: str) -> int:
        return main(["fit", screen, *words, *timed, *more, "--out", str(tmp_path / "run")])

    def die() -> int:
        between = training.Keeper.on_train_end

        def deadly(self, trainer, module):
            between(self, trainer, module)
            if self.path is not None:
                os.kill(os.getpid(), signal.SIGKILL)

        training.Keeper.on_train_end = deadly
        return run_timed()

    assert ended(start(die)) == -signal.SIGKILL
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    planned = planned_steps(last)
    before = last.read_bytes()
    assert ended(start(run_timed, "--resume")) == 0
    assert last.read_bytes() == before and planned >= 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_that_was_reached(screen, straight, tmp_path, signum, code, capfd):
    run = tmp_path / "run"

    def signalled() -> int:
        step = training.FlowTraining.training_step

        def loud(self, batch, batch_idx):
            if self.global_step == 8:
                os.kill(os.getpid(), signum)
            return step(self, batch, batch_idx)

        training.FlowTraining.training_step = loud
        keep = training.Keeper.__init__
        training.Keeper.__init__ = lambda self, path, every: keep(self, path, 1000)  # no interval: only the signal writes
        return fit(screen, run)

    assert ended(start(signalled)) == code
    said = capfd.readouterr().err
    assert f"go on with: counterflow fit --config {run / 'config.yaml'} --resume" in said and "Traceback" not in said
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    assert ended(start(go_on, screen, run)) == 0
    assert result(run) == straight[0]
    check_steps(run)


@pytest.fixture
def interruptible():
    """A job in the background is started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_in_python_does_what_it_always_does_after_the_step(declared, tmp_path):
    class Loud(training.L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 7:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model = CounterFlow(declared, anchor="none", backbone_kwargs={"width": 8, "depth": 1})
    with pytest.raises(KeyboardInterrupt):
        model.train(max_steps=60, batch_size=32, progress=False, run_dir=tmp_path, callbacks=[Loud()])
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert signal.getsignal(signal.SIGINT) == before


def test_a_full_disk_ends_with_one_line_and_keeps_the_last_state(screen, straight, tmp_path, capfd):
    run = tmp_path / "run"

    def on_a_small_disk() -> int:
        between = training.Keeper.on_train_batch_start

        def filling(self, trainer, *rest):
            if trainer.global_step == 11:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            between(self, trainer, *rest)

        training.Keeper.on_train_batch_start = filling
        return fit(screen, run)

    assert ended(start(on_a_small_disk)) == 2
    said = capfd.readouterr().err
    assert "cannot write" in said and "last.ckpt" in said and "MB are free there" in said and "Traceback" not in said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
    assert ended(start(go_on, screen, run)) == 0
    assert result(run) == straight[0]


def test_two_processes_do_not_work_on_one_run(screen, tmp_path, capfd):
    run = tmp_path / "run"
    assert ended(start(die_in_fit, 1, 10, screen, run)) == -signal.SIGKILL

    def sleepy() -> int:
        def asleep(*_):
            (tmp_path / "asleep").touch()
            time.sleep(60)

        training.Keeper.on_train_batch_start = asleep
        return go_on(screen, run)

    pid, deadline = start(sleepy), time.monotonic() + 30
    try:
        while not (tmp_path / "asleep").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        state = (run / "checkpoints" / "last.ckpt").read_bytes()
        for more in ("--resume", "--overwrite"):
            assert ended(start(fit, screen, run, more)) == 2
            assert "another process is working on" in capfd.readouterr().err
        assert (run / "checkpoints" / "last.ckpt").read_bytes() == state
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    assert ended(start(go_on, screen, run)) == 0  # the claim ended with the process


@pytest.mark.slow
def test_random_kills_while_models_are_compared(screen, straight, tmp_path):
    def compared(out: Path) -> int:
        from counterflow.compare import compare

        adata = anndata.read_h5ad(screen)
        CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
        options = {"model_options": {"backbone_kwargs": {"width": 8, "depth": 1}}, "train_options": {"batch_size": 32, "set_size": 16}}
        compare(adata, ["mlp/pca"], split="unseen_combination", budget_steps=4, seeds=2, out=out, progress=False, **options)
        return 0

    def rows(out: Path) -> list[dict[str, str]]:
        with (out / "table.csv").open() as handle:
            return list(csv.DictReader(handle))

    begun = time.monotonic()
    assert ended(start(compared, tmp_path / "straight")) == 0
    seconds, draw, killed = time.monotonic() - begun, np.random.default_rng(2), 0
    for n in range(10):
        pid = start(compared, tmp_path / str(n))
        time.sleep(draw.uniform(0, 1) * seconds)
        os.kill(pid, signal.SIGKILL)
        killed += ended(pid) == -signal.SIGKILL
        assert ended(start(compared, tmp_path / str(n))) == 0
        assert rows(tmp_path / str(n)) == rows(tmp_path / "straight")
    print(f"\n{killed} kills while comparing, all resumed; a comparison takes {seconds:.1f} s")
    assert killed >= 5


# ---------------------------------------------------------------------- saved models


def save_and_die(model: CounterFlow, path: Path, at: int) -> int:
    """Kill this process at the `at`-th thing that saving does to the disk; 7: there are fewer."""
    import safetensors.numpy
    import safetensors.torch

    seen = 0

    def tick() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn(save):
        def half(tensors, file, *rest):
            save(tensors, file, *rest)
            whole = Path(file).read_bytes()
            if seen + 1 == at:
                Path(file).write_bytes(whole[: len(whole) // 2])
            tick()
            Path(file).write_bytes(whole)

        return half

    safetensors.torch.save_file, safetensors.numpy.save_file = torn(safetensors.torch.save_file), torn(safetensors.numpy.save_file)
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
    sys.addaudithook(lambda event, arguments: tick() if event in watched and str(path.parent) in str(arguments) else None)
    model.save(path, overwrite=True)
    return 7


def test_a_kill_at_every_write_leaves_one_whole_model(declared, tmp_path):
    small = {"anchor": "none", "backbone_kwargs": {"width": 8, "depth": 1}, "keep_controls": 4}
    old, new = (CounterFlow(declared, seed=seed, **small) for seed in (0, 1))
    for model in (old, new):
        model.train(max_steps=1, batch_size=32, progress=False)
    weights = [model.module.state_dict() for model in (old, new)]
    found, at = [], 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        old.save(folder / "model")
        code = ended(start(save_and_die, new, folder / "model", at))
        loaded = CounterFlow.load(folder / "model").module.state_dict()
        which = [all(torch.equal(loaded[name], value) for name, value in some.items()) for some in weights]
        assert sum(which) == 1
        found.append(which.index(True))
        new.save(folder / "model", overwrite=True)  # and the next save clears away what the killed one left
        assert [path.name for path in folder.iterdir()] == ["model"]
        if code == 7:
            break
        assert code == -signal.SIGKILL
    assert at > 15 and found == sorted(found) and {0, 1} == set(found)


def test_a_save_on_a_full_disk_says_so_and_keeps_the_old_model(declared, tmp_path):
    model = CounterFlow(declared, anchor="none", backbone_kwargs={"width": 8, "depth": 1})
    model.train(max_steps=1, batch_size=32, progress=False)
    model.save(tmp_path / "model")

    def full() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            model.save(tmp_path / "model", overwrite=True)
        except CheckpointError as error:
            return 3 if "cannot write" in str(error) and "MB are free" in str(error) and "is kept" in str(error) else 4
        return 5

    assert ended(start(full)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    CounterFlow.load(tmp_path / "model")


def test_what_a_dead_process_of_the_same_number_left_is_no_obstacle(tmp_path):
    left = tmp_path / f".model.tmp-{os.getpid()}"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    shown = {name: {} for name in checkpoint.KEYS - {"format", "schema", "files"}}
    checkpoint.write(tmp_path / "model", shown, {"w": torch.ones(1)}, {"a": np.ones(1)}, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    shutil.move(tmp_path / "model", tmp_path / f".model.old-{os.getpid()}")  # killed between the two renames
    assert checkpoint.read(tmp_path / "model")[2] == {"a": np.ones(1)}
    with pytest.raises(CheckpointError, match="holds no model"):
        checkpoint.read(tmp_path / "other")


@pytest.mark.parametrize("place", ["file", "cache"])
def test_a_fit_of_cells_on_disk_is_resumed_to_the_same_bits(screen, straight, tmp_path, monkeypatch, place):
    path, run = str(tmp_path / "screen.h5ad"), tmp_path / "run"
    shutil.copy(screen, path)
    if place == "cache":
        assert main(["convert", path, *FIT[:4], "--quiet"]) == 0
    monkeypatch.setattr(feed, "SHARE", 0.0)  # nothing fits into memory
    monkeypatch.setattr(stored, "_known", {})
    for number, step in ((1, 8), (3, 4)):
        assert ended(start(die_in_fit, number, step, path, run)) == -signal.SIGKILL
    assert ended(start(go_on, path, run)) == 0
    check_steps(run)
    assert sorted(result(run)) == sorted(straight[0])
    for name, content in result(run).items():
        assert content == straight[0][name], name  # nobody interrupted that one, and all of its cells were in memory


@pytest.mark.parametrize("new", [[], ["--new"]])
def test_cells_are_generated_to_the_end_after_kills(screen, straight, tmp_path, capsys, new):
    del straight  # it has everything imported
    run = tmp_path / "run"
    assert ended(start(fit, screen, run)) == 0
    names = sorted(CounterFlow.load(run).vocabulary.seen)[:3]
    words = [str(run), *(word for name in names for word in ("--condition", name)), "--n_cells", "300", *new]

    def generate(out: Path, *more: str) -> int:
        return main(["generate", *words, *more, "--out", str(out)])

    def die_after(number: int, writes: int, out: Path) -> int:
        """Kill this process some writes into a block."""
        whole, append, begun = h5_parts.H5Parts.add, h5_writer._append, []

        def counted(self, block):
            begun.append(0)
            return whole(self, block)

        def deadly(*arguments):
            append(*arguments)
            begun[-1:] = [begun[-1] + 1]
            if (len(begun), begun[-1]) == (number, writes):
                os.kill(os.getpid(), signal.SIGKILL)

        h5_parts.H5Parts.add, h5_writer._append = counted, deadly
        return generate(out)

    whole, out = tmp_path / "whole.h5ad", tmp_path / "killed" / "cells.h5ad"
    assert generate(whole) == 0
    assert ended(start(die_after, 2, 3, out)) == -signal.SIGKILL  # in the second block
    assert ended(start(die_after, 2, 5, out)) == -signal.SIGKILL  # goes on with the second, dies in the third
    assert len(list(out.with_name("cells.h5ad.partial").glob("part-*"))) == 2 and not out.exists()
    capsys.readouterr()
    assert generate(out, "--seed", "5") == 2
    assert "cells of another request, which was interrupted (different: seed)" in capsys.readouterr().err
    assert generate(out) == 0
    assert "going on after the 2 blocks of cells" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes() and [path.name for path in out.parent.iterdir()] == ["cells.h5ad"]
    assert ended(start(die_after, 2, 3, out)) == -signal.SIGKILL
    assert generate(out, "--seed", "5", "--overwrite") == 0 and out.read_bytes() != whole.read_bytes()


def test_ctrl_c_keeps_the_cells_and_says_how_to_go_on(screen, straight, tmp_path, capsys, monkeypatch):
    del straight
    run, out, whole = tmp_path / "run", tmp_path / "cells.h5ad", h5_parts.H5Parts.add
    assert ended(start(fit, screen, run)) == 0
    names = sorted(CounterFlow.load(run).vocabulary.seen)[:2]
    words = ["generate", str(run), *(word for name in names for word in ("--condition", name)), "--n_cells", "20", "--out", str(out)]

    def stopped(self, block):
        if self.n_done:
            raise KeyboardInterrupt
        whole(self, block)

    monkeypatch.setattr(h5_parts.H5Parts, "add", stopped)
    assert main(words) == 130
    assert "1 blocks of cells are in" in (said := capsys.readouterr().err) and "same command again" in said
    monkeypatch.undo()
    assert main(words) == 0 and anndata.read_h5ad(out).n_obs == 40
