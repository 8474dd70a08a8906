"""Training through Lightning: optimiser, schedule, EMA, early stopping, resume.

The state of training is written *between* two steps: everything that belongs to the steps before it is done (average, schedule, validation,
log), nothing of the next one has begun. So a run that was killed anywhere goes on from there to the same bits.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from counterflow.callbacks import History, Keeper, WholeFile
from counterflow.compiling import compiled
from counterflow.data.datamodule import StepDataset
from counterflow.data.images import ImageSteps
from counterflow.devices import common, looked_at, mean_of_all, names_of_all, share_of, with_the_others
from counterflow.diffusion.module import DiffusionModule
from counterflow.errors import CheckpointError, ConfigError, DataError
from counterflow.loggers import opened
from counterflow.module import FlowModule
from counterflow.processor import at_work
from counterflow.reflow import Reflow
from counterflow.resuming import forget, identity, read_state
from counterflow.stopping import between_steps
from counterflow.types import Batch

Objective: TypeAlias = FlowModule | DiffusionModule | Reflow
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
        of_all = mean_of_all(self.trainer, loss)
        if looked_at(loss.device, self.global_step) and not torch.isfinite(of_all):
            raise common(DataError(self._not_finite(f"the loss became {float(of_all.detach())}", batch)))
        self.log("train_loss", of_all, prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing that is not finite replaces a good checkpoint; the data are noted, so that a run is resumed on the same ones."""
        self.check_weights()
        checkpoint["data"] = self.data

    def check_weights(self) -> None:
        """Raise if a weight is not finite."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.parameters()):
            raise common(DataError(self._not_finite("weights became NaN or infinite", None)))

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
        if batch.own is not None:
            batch = batch.rows(batch.own)
        for group in batch.group.unique().tolist():
            if not torch.isfinite(self.module.loss(batch.rows(batch.group == group), self.step_generator(self.global_step))):
                odd.append(self.names[group] if group < len(self.names) else str(group))
        odd = names_of_all(self.trainer, odd)
        return f" in {len(odd)} of its sets ({', '.join(map(repr, odd[:3]))})" if odd else ""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on validation conditions with the same noise every time."""
        loss = self.module.loss(batch, self.step_generator(-1 - batch_idx & 0xFFFFFFFF))
        self.log("val_loss", mean_of_all(self.trainer, loss), prog_bar=True, batch_size=len(batch.target))

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
    """Exponential moving average, in place, whose memory grows with the number of updates: beta = min(.9999, (1 + n) / (10 + n))."""
    beta = min(0.9999, (1 + int(n)) / (10 + int(n)))
    return averaged.lerp_(current.to(averaged.dtype), 1 - beta) if averaged.is_floating_point() else current


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
    devices: Any = 1,
    precision: Any = "32-true",
    compile: bool = False,
    callbacks: Sequence[L.Callback] = (),
    data: str | None = None,
    force_data: bool = False,
    parts: Path | None = None,
    logger: Any = "csv",
    plugins: Any = (),
    **trainer_kwargs: Any,
) -> list[dict[str, float]]:
    """Train `module` in place (it ends with the averaged weights) and return the logged history.

    With `run_dir`, a CSV log and ``checkpoints/last.ckpt`` (for resuming this run only; share the saved model instead) are kept.
    `data`, a fingerprint, goes into the checkpoint; a run on other data is resumed with `force_data` only.
    `logger` is where the same curves go as well (`counterflow.loggers`).
    A fit without a `run_dir` of its own keeps its state in the directory `parts`, and goes on from the one it finds there.
    """
    state = forgotten = None
    if run_dir is not None:
        state = Path(run_dir) / "checkpoints" / "last.ckpt"
        if resume_from is None:
            forgotten = state.parent
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
    with (
        between_steps() as keeper.request,
        _quiet_lightning(),
        at_work(module),
        compiled(module.backbone, compile),
        opened(logger, run_dir) as log,
    ):
        trainer = L.Trainer(
            max_steps=train.stop,
            max_epochs=-1,
            callbacks=[*own, *callbacks],
            logger=log,
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
        shared = Shared(train, val, trainer)
        if forgotten is not None and trainer.is_global_zero:
            forget(forgotten)
        with with_the_others(trainer):
            trainer.fit(training, shared, ckpt_path=None if resume_from is None else os.fspath(resume_from), weights_only=True)
    training.check_weights()
    module.float().eval()  # whatever precision it was trained in
    return history.rows


class Shared(L.LightningDataModule):
    """The steps of a fit, and of these what each process computes; whether they can be shared is known before any is started."""

    def __init__(self, train: Steps, val: Steps | None, trainer: L.Trainer) -> None:
        super().__init__()
        self.train, self.val = train, val
        train.share(*share_of(trainer))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training steps."""
        return self._loader(self.train)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Validation steps, if any."""
        return [] if self.val is None else self._loader(self.val)

    def _loader(self, steps: Steps) -> DataLoader[Batch]:
        """Batches as they come; the generator is there because a loader without one draws from the caller's."""
        return DataLoader(steps.share(*share_of(self.trainer)), batch_size=None, generator=torch.Generator())


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice on devices, workers and loggers is not the user's business; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
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


def _is_watched() -> bool:
    """A terminal or a notebook; a log file wants no bars."""
    from rich.console import Console

    console = Console()
    return console.is_terminal or console.is_jupyter


def _progress_bar() -> L.Callback:
    from lightning.pytorch.callbacks import RichProgressBar

    class Steps(RichProgressBar):
        """Steps and the time left: here is one long epoch, whose number says nothing."""

        def _get_train_description(self, current_epoch: int) -> str:
            return "training"

    return Steps(leave=False)
