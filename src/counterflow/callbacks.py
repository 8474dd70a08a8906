"""What goes along with training: the state is written, the history is kept, the time is taken."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from counterflow.checkpoint import write_whole
from counterflow.devices import check_same_start, largest_of_all, looked_at
from counterflow.stopping import StoppedBetweenSteps, StopRequest


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
        check_same_start(trainer)
        self.written = trainer.global_step
        self.request.listen()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        stop = self._is_asked_to_stop(trainer)
        if stop or trainer.global_step % self.every == 0:
            self._write(trainer)
        if stop:
            raise StoppedBetweenSteps

    def _is_asked_to_stop(self, trainer: L.Trainer) -> bool:
        """Where several processes train, a signal to one of them stops all, at the same step."""
        if trainer.world_size > 1 and not looked_at(trainer.strategy.root_device, trainer.global_step):
            return False
        signum = int(largest_of_all(trainer, self.request.signum or 0))
        self.request.signum = signum or self.request.signum
        return signum > 0

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
