"""Training through Lightning: optimiser, schedule, EMA, early stopping, resume.

The state of training is written *between* two steps: everything that belongs to the steps before it is done (average, schedule, validation,
log), nothing of the next one has begun. So a run that was killed anywhere goes on from there to the same bits.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from counterflow.checkpoint import write_whole
from counterflow.compiling import compiled
from counterflow.data.datamodule import StepDataset
from counterflow.data.images import ImageSteps
from counterflow.diffusion.module import DiffusionModule
from counterflow.errors import CheckpointError, ConfigError, DataError
from counterflow.module import FlowModule
from counterflow.processor import at_work
from counterflow.resuming import forget, identity, read_state
from counterflow.stopping import StoppedBetweenSteps, StopRequest, between_steps
from counterflow.types import Batch, ConditionIds

_LOOK_EVERY = 20  # steps between looks at the loss on an accelerator

Objective: TypeAlias = FlowModule | DiffusionModule
Steps: TypeAlias = StepDataset | ImageSteps


class FlowTraining(L.LightningModule):
    """One optimiser step of whatever has a loss. Noise and times come from (seed, step), so a resumed run repeats the same bits."""

    def __init__(
        self, module: Objective, *, lr: float, weight_decay: float, max_steps: int, warmup: int, seed: int,
        names: Sequence[str] = (), data: str | None = None, checkpoint: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self.names, self.data, self.checkpoint = names, data, checkpoint
        self.lr, self.weight_decay, self.max_steps, self.warmup, self.seed = lr, weight_decay, max_steps, warmup, seed

    def step_generator(self, step: int) -> torch.Generator:
        """The randomness of one step."""
        return torch.Generator().manual_seed((self.seed << 32) + step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; stops the run when it is not finite."""
        del batch_idx
        loss = self.module.loss(batch, self.step_generator(self.global_step))
        looked_at = loss.device.type == "cpu" or self.global_step % _LOOK_EVERY == 0  # asking an accelerator makes it wait
        if looked_at and not torch.isfinite(loss):
            raise DataError(self._not_finite(f"the loss became {float(loss.detach())}", batch))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing that is not finite replaces a good checkpoint; the data are noted, so that a run is resumed on the same ones."""
        self.check_weights()
        checkpoint["data"] = self.data

    def check_weights(self) -> None:
        """Raise if a weight is not finite."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.parameters()):
            raise DataError(self._not_finite("weights became NaN or infinite", None))

    def _not_finite(self, what: str, batch: Batch | None) -> str:
        sets = "" if batch is None else self._odd_sets(batch)
        kept = ""
        if self.checkpoint is not None and self.checkpoint.is_file():
            kept = f"; the last good checkpoint is kept: {os.fspath(self.checkpoint)}"
        return f"{what} at step {self.global_step}{sets}: lower lr (now {self.lr:g}) or look for outliers in the data{kept}"

    @torch.no_grad()
    def _odd_sets(self, batch: Batch) -> str:
        """Which sets of a batch have a loss that is not finite, by the names of their groups."""
        odd = []
        for group in batch.group.unique().tolist():
            rows = batch.group == group
            ids = ConditionIds(*(column[rows] for column in batch.ids))
            control = None if batch.control is None else batch.control[rows]
            part = Batch(batch.target[rows], control, ids, batch.group[rows], batch.library[rows])
            if not torch.isfinite(self.module.loss(part, self.step_generator(self.global_step))):
                odd.append(self.names[group] if group < len(self.names) else str(group))
        return f" in {len(odd)} of its sets ({', '.join(map(repr, odd[:3]))})" if odd else ""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on validation conditions with the same noise every time."""
        loss = self.module.loss(batch, self.step_generator(-1 - batch_idx & 0xFFFFFFFF))
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch.target))

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then cosine to zero."""
        fused = self.trainer.precision != "16-mixed"  # there a fused optimiser would see gradients that are scaled still
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By norm. Lightning refuses this for a fused optimiser under autocast, for fear of scaled gradients; in bfloat16 none are."""
        if self.trainer.precision != "bf16-mixed" or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def _schedule(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.max_steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def ema_update(averaged: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
    """Exponential moving average whose memory grows with the number of updates: beta = min(.9999, (1 + n) / (10 + n))."""
    beta = min(0.9999, (1 + int(n)) / (10 + int(n)))
    return averaged.lerp(current, 1 - beta) if averaged.is_floating_point() else current


def fit(
    module: Objective,
    train: Steps,
    val: Steps | None,
    *,
    lr: float,
    weight_decay: float,
    seed: int,
    gradient_clip_val: float = 1.0,
    early_stopping: bool = False,
    patience: int = 10,
    run_dir: str | os.PathLike[str] | None = None,
    resume_from: str | os.PathLike[str] | None = None,
    progress: bool = True,
    accelerator: str = "auto",
    devices: Any = "auto",
    precision: Any = "32-true",
    compile: bool = False,
    callbacks: Sequence[L.Callback] = (),
    data: str | None = None,
    force_data: bool = False,
    parts: Path | None = None,
    plugins: Any = (),
    **trainer_kwargs: Any,
) -> list[dict[str, float]]:
    """Train `module` in place (it ends with the averaged weights) and return the logged history.

    With `run_dir`, a CSV log and ``checkpoints/last.ckpt`` (for resuming this run only; share the saved model instead) are kept.
    `data`, a fingerprint, goes into the checkpoint; a run on other data is resumed with `force_data` only.
    A fit without a `run_dir` of its own keeps its state in the directory `parts`, and goes on from the one it finds there.
    """
    state = None
    if run_dir is not None:
        state = Path(run_dir) / "checkpoints" / "last.ckpt"
        if resume_from is None:
            forget(state.parent)
        elif trainer_kwargs.get("accumulate_grad_batches", 1) != 1:
            raise ConfigError(
                "a run with accumulate_grad_batches cannot be resumed to the same bits: start anew, better with a larger batch"
            )
    elif parts is not None and trainer_kwargs.get("accumulate_grad_batches", 1) == 1:
        state = parts / f"part-{identity(module, train, lr, weight_decay, seed, str(precision))}.ckpt"
        resume_from = state if state.is_file() else None
    training = FlowTraining(
        module, lr=lr, weight_decay=weight_decay, max_steps=train.stop, warmup=min(1000, max(1, train.stop // 20)), seed=seed,
        names=getattr(train, "names", ()), data=data, checkpoint=state,
    )  # fmt: skip
    history = History(None if run_dir is None else Path(run_dir) / "metrics.csv")
    check_every = max(1, min(train.stop // 20, len(train)))
    keeper = Keeper(state, check_every)
    own: list[L.Callback] = [keeper, WeightAveraging(avg_fn=ema_update), history]
    if val is not None and early_stopping:
        own.append(EarlyStopping("val_loss", patience=patience))
    progress = progress and _is_watched()
    if progress:
        own.append(_progress_bar())
    if resume_from is not None:
        content = read_state(resume_from, data, force_data)
        if (
            content.get("finished") and content.get("planned") == train.stop
        ):  # Lightning would do nothing, and leave the weights that are not averaged
            return _finished(content, training, history)
        train.start = int(content["global_step"])
    module.train()
    with between_steps() as keeper.request, _quiet_lightning(), at_work(module), compiled(module.backbone, compile):
        trainer = L.Trainer(
            max_steps=train.stop,
            max_epochs=-1,
            callbacks=[*own, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            gradient_clip_val=gradient_clip_val,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            use_distributed_sampler=False,
            log_every_n_steps=min(50, max(1, train.stop // 10)),
            val_check_interval=check_every if val is not None else None,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            plugins=[WholeFile(), *(plugins if isinstance(plugins, (list, tuple)) else [plugins])],
            **trainer_kwargs,
        )
        trainer.fit(
            training,
            _loader(train),
            None if val is None else _loader(val),
            ckpt_path=None if resume_from is None else os.fspath(resume_from),
            weights_only=True,
        )
    training.check_weights()
    module.eval()
    return history.rows


def _loader(steps: Steps) -> DataLoader[Batch]:
    """Batches as they come; the generator is there because a loader without one draws from the caller's."""
    return DataLoader(steps, batch_size=None, generator=torch.Generator())


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice on devices, workers and loggers is not the user's business; errors still raise."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.*")
            yield
    finally:
        logger.setLevel(level)


def _finished(content: dict[str, Any], training: FlowTraining, history: History) -> list[dict[str, float]]:
    """What a fit that had come to its end left behind."""
    try:
        training.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of another model: {error}") from None
    history.load_state_dict(content["callbacks"][history.state_key])
    training.module.eval()
    return history.rows


class WholeFile(TorchCheckpointIO):
    """Checkpoints that are whole or not there, whenever the process, the disk or the machine gives up."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside, then rename."""
        del storage_options
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getbuffer())


class Keeper(L.Callback):
    """Writes the state of training every so many steps, at the end, and when the run is asked to stop."""

    def __init__(self, path: Path | None, every: int) -> None:
        self.path, self.every = path, every
        self.request = StopRequest()
        self.written = 0
        self.finished = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has its own handlers in place by now: ours come after."""
        self.written = trainer.global_step
        self.request.listen()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        stop = self.request.signum is not None
        if stop or trainer.global_step % self.every == 0:
            self._write(trainer)
        if stop:
            raise StoppedBetweenSteps

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last state, before the averaged weights take the place of the others."""
        self.finished, self.written = True, -1
        self._write(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """How long the run is to be, and whether it has come to its end."""
        checkpoint["planned"], checkpoint["finished"] = trainer.max_steps, self.finished

    def _write(self, trainer: L.Trainer) -> None:
        if self.path is not None and trainer.global_step != self.written:
            trainer.save_checkpoint(self.path)
            self.written = trainer.global_step


class History(L.Callback):
    """Keeps what was logged, as `model.history` and in a CSV file; a resumed run goes on with the rows of before."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.latest: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One row every logging interval."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._look(trainer)
            self.rows.append({"step": float(trainer.global_step), **self.latest})
            self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembered for the next row."""
        self._look(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The file is there even where nothing was logged."""
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rows": self.rows, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.rows, self.latest = list(state_dict["rows"]), dict(state_dict["latest"])

    def _look(self, trainer: L.Trainer) -> None:
        self.latest |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _write(self, trainer: L.Trainer) -> None:
        if self.path is None or not trainer.is_global_zero:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, ["step", *dict.fromkeys(name for row in self.rows for name in row if name != "step")])
        table.writeheader()
        table.writerows({**row, "step": int(row["step"]) - 1} for row in self.rows)
        write_whole(self.path, text.getvalue().encode())


class Stopwatch(L.Callback):
    """Times optimiser steps in processor seconds, everything around them included, and stops when these are used up (after two steps)."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.ends.append(time.process_time())
        trainer.should_stop = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > self.seconds

    def per_step(self) -> float:
        """The median over the steps but the first, which also warms up."""
        return float(np.median(np.diff(self.ends)))


def _is_watched() -> bool:
    """A terminal or a notebook; a log file wants no bars."""
    from rich.console import Console

    console = Console()
    return console.is_terminal or console.is_jupyter


def _progress_bar() -> L.Callback:
    from lightning.pytorch.callbacks import RichProgressBar

    return RichProgressBar(leave=False)
