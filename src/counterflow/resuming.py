"""What a run of training goes on from: reading states, knowing whose they are, forgetting old ones."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from counterflow.errors import CheckpointError, DataError
from counterflow.types import Batch


class Steps(Protocol):
    """Numbered batches."""

    stop: int

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        ...


def read_state(checkpoint: str | os.PathLike[str], data: str | None, force_data: bool) -> dict[str, Any]:
    """The content of a checkpoint of the same data."""
    if not Path(checkpoint).is_file():
        raise CheckpointError(f"nothing to resume from: {os.fspath(checkpoint)!r} does not exist")
    try:
        with zipfile.ZipFile(checkpoint) as parts:  # torch writes checksums, and does not look at them
            if damaged := parts.testzip():
                raise CheckpointError(f"{os.fspath(checkpoint)!r} is damaged ({damaged} does not have its checksum): start the run anew")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        before = content.get("data")
        int(content["global_step"])
        if not isinstance(before, str | None) or not isinstance(content.get("planned"), int | None):
            raise TypeError("its entries are of other kinds")
    except CheckpointError:
        raise
    except Exception as error:  # the reader of tensors has many words for a damaged file
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{os.fspath(checkpoint)!r} is not a checkpoint of a run, or is damaged: {line}") from error
    if not force_data and data is not None and before not in (None, data):
        raise DataError(
            f"the data changed since {os.fspath(checkpoint)!r} was written (fingerprint {before[:12]}, now {data[:12]}): resume with the "
            "same data, start anew, or go on with force_data=True"
        )
    return content


def planned_steps(checkpoint: str | os.PathLike[str]) -> int | None:
    """How many steps the run behind a checkpoint was to take."""
    return read_state(checkpoint, None, force_data=True).get("planned")


def forget(checkpoints: Path) -> None:
    """Remove the states of an earlier run, so that nobody goes on from them by mistake."""
    for name in ("last.ckpt", "part-*.ckpt"):
        for file in checkpoints.glob(name):
            file.unlink()


def identity(module: nn.Module, train: Steps, *options: float | str) -> str:
    """Names a fit by what it starts from: its first weights, its first batch and its options."""
    digest = hashlib.sha256(repr((train.stop, *options)).encode())
    batch = train.batch(0)
    for value in (*module.state_dict().values(), batch.target, batch.control, batch.group, *batch.ids):
        if value is not None:
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]
