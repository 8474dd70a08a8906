"""Curves also go where a name says, and what cannot be done is said before anything is."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from counterflow import ConfigError, CounterFlow, loggers
from counterflow.cli.fit import parser

TINY = {"space_kwargs": {"n_components": 4}, "backbone_kwargs": {"size": "XS"}, "anchor": "none"}


def fit(declared, **options):
    model = CounterFlow(declared, **TINY)
    model.train(max_steps=3, progress=False, **options)
    return model


def test_tensorboard_gets_the_curves_of_the_history(declared, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = fit(declared, run_dir=tmp_path, logger="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "train_loss" in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx([row["train_loss"] for row in model.history])
    assert (tmp_path / "metrics.csv").is_file()


def test_without_a_name_only_the_csv_file_is_written(declared, tmp_path):
    fit(declared, run_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.csv"]


def test_the_result_does_not_depend_on_who_watches(declared, tmp_path):
    pytest.importorskip("tensorboard")
    plain, watched = fit(declared), fit(declared, run_dir=tmp_path, logger="tensorboard")
    for a, b in zip(plain.module.parameters(), watched.module.parameters(), strict=True):
        assert a.equal(b)


class FakeRun:
    """What W&B keeps of a run, as far as Lightning's logger and we ask for it."""

    def __init__(self, **how):
        self.how, self.rows, self.finished = how, [], 0
        self.experiment = SimpleNamespace(finish=self.finish)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """The package is there, and its logger is a fake."""
    import lightning.pytorch.loggers as theirs

    made = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__spec__=SimpleNamespace()))
    monkeypatch.setattr(theirs, "WandbLogger", lambda **how: made.append(FakeRun(**how)) or made[-1])
    return made


@pytest.mark.parametrize(("mode", "offline"), [(None, True), ("offline", True), ("online", False)])
def test_wandb_stays_on_this_machine_unless_asked(wandb, monkeypatch, tmp_path, mode, offline):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    with loggers.opened("wandb", tmp_path / "first") as run:
        assert run.how == {"name": "first", "project": "counterflow", "save_dir": tmp_path / "first", "offline": offline}
        assert run.finished == 0
    assert run.finished == 1


def test_a_run_of_wandb_ends_where_training_failed(wandb, tmp_path):
    with pytest.raises(RuntimeError), loggers.opened("wandb", tmp_path):
        raise RuntimeError
    assert wandb[0].finished == 1


def test_a_logger_of_yours_is_taken_as_it_is(declared, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    mine = CSVLogger(tmp_path, name="mine", version=0)
    fit(declared, logger=mine)
    assert "train_loss" in (tmp_path / "mine" / "version_0" / "metrics.csv").read_text()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_way_to_get_it(declared, monkeypatch, tmp_path, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"needs the package '{name}', which is not installed: pip install {name}"):
        fit(declared, run_dir=tmp_path / "run", logger=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logger": "tensorbord"}, "did you mean 'tensorboard'"),
        ({"logger": "tensorboard"}, "there is none: give run_dir"),
        ({"logger": 3}, "neither a name"),
        ({"logger": None}, "neither a name"),
    ],
)
def test_what_cannot_be_a_logger_is_refused(declared, options, said):
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match=said):
        fit(declared, **options)


def test_the_command_line_takes_names(tmp_path):
    options, _ = parser().parse(["screen.h5ad", "--train.logger", "tensorboard"])
    assert options.train.logger == "tensorboard"
    with pytest.raises(ConfigError, match="one of 'csv', 'tensorboard', 'wandb'"):
        parser().parse(["screen.h5ad", "--train.logger", "tensorbord"])
    with pytest.raises(ConfigError, match=r"did you mean 'train\.logger'"):
        parser().parse(["screen.h5ad", "--logger", "tensorboard"])


def test_a_run_is_resumed_with_another_logger_and_replayed_without(tiny_screen, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from counterflow.cli import main
    from counterflow.run import RunDirectory

    screen, run = str(tmp_path / "screen.h5ad"), RunDirectory(tmp_path / "run")
    tiny_screen.adata.write_h5ad(screen)
    call = ["fit", screen, "--setup.perturbation_key", "perturbation", "--setup.control", "control", "--train.max_steps", "4", "--quiet"]
    call += ["--model.anchor", "none", "--out", str(run.path)]
    assert main(call) == 0 and not (run.path / "tensorboard").exists()
    shutil.rmtree(run.model)  # as if it had been killed before the end
    assert main([*call, "--resume", "--train.logger", "tensorboard"]) == 0
    assert main([*call, "--overwrite", "--train.logger", "tensorboard"]) == 0 and (run.path / "tensorboard").is_dir()
    capsys.readouterr()
    monkeypatch.setattr(loggers, "PACKAGES", {"csv": None, "tensorboard": "not_on_this_machine"})
    assert main(["replay", str(run.path)]) == 0
    assert "identical" in (said := capsys.readouterr().out) and "not as it was" not in said
