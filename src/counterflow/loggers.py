"""Where else the curves of a training go, by name: Lightning's loggers for TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counterflow.errors import ConfigError, near

PACKAGES = {"csv": None, "tensorboard": "tensorboard", "wandb": "wandb"}
"""Name -> the package it needs. ``csv``: the file ``metrics.csv``, which every run directory has anyway."""

ONLINE = "online"  # what WANDB_MODE says where runs are to leave this machine


def check_logger(logger: Any, run_dir: str | os.PathLike[str] | None) -> None:
    """Raise ConfigError if `logger` is neither a Lightning logger nor a name whose package, and a place to write, is there."""
    if not isinstance(logger, str):
        if logger is None or not all(callable(getattr(logger, name, None)) for name in ("log_metrics", "finalize")):
            raise ConfigError(f"logger={logger!r} is neither a name ({', '.join(PACKAGES)}) nor a Lightning logger")
        return
    if logger not in PACKAGES:
        raise ConfigError(f"logger={logger!r} is unknown: {near(logger, PACKAGES)}")
    package = PACKAGES[logger]
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(f"logger={logger!r} needs the package {package!r}, which is not installed: pip install {package}")
    if package is not None and run_dir is None:
        raise ConfigError(f"logger={logger!r} writes into the run directory, and there is none: give run_dir")


@contextmanager
def opened(logger: Any, run_dir: str | os.PathLike[str] | None) -> Iterator[Any]:
    """What Lightning's Trainer takes as its logger, for as long as one training lasts.

    TensorBoard's files are in ``run_dir/tensorboard``; those of W&B in ``run_dir/wandb``, and they stay there (``wandb sync`` sends them)
    unless the environment variable ``WANDB_MODE`` is ``online``.
    """
    if not isinstance(logger, str):  # yours to begin and to end
        yield logger
        return
    if logger == "csv" or run_dir is None:
        yield False
        return
    from lightning.pytorch import loggers

    path = Path(run_dir)
    if logger == "tensorboard":
        yield loggers.TensorBoardLogger(save_dir=path, name="", version="tensorboard")
        return
    path.mkdir(parents=True, exist_ok=True)
    online = os.environ.get("WANDB_MODE") == ONLINE
    run = loggers.WandbLogger(name=path.name, project="counterflow", save_dir=path, offline=not online)
    try:
        yield run
    finally:
        run.experiment.finish()  # or the next training would go on with this one
