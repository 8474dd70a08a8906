"""Several processes that train one network, one on each device: whose part is whose, what all must agree on, and what ends them.

Lightning starts the processes, connects them and averages their gradients. Each of them reads the whole step (`StepDataset.share`) and
computes its own sets; what stops one of them has to stop all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from counterflow.errors import ConfigError, ProcessError

_LOOK_EVERY = 20  # steps
_CONNECTION = ("gloo", "nccl", "connection", "socket", "store", "process group", "timed out", "timeout")

_UNUSED = "parameters that were not used in producing the loss"


def is_first() -> bool:
    """Whether this process writes what a fit leaves behind: the first of several, or the only one."""
    torch_is_here = "torch" in sys.modules  # a process that has not imported it has not joined others
    if not (torch_is_here and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    return torch.distributed.get_rank() == 0


def share_of(trainer: Any) -> tuple[int, int]:
    """(rank, number of processes) by which the batches of a `lightning.Trainer` are shared, as its strategy says.

    Raises
    ------
    ConfigError
        If torchrun started another number of processes: each of them would fit and write the same run.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and trainer.world_size != started:
        raise ConfigError(
            f"torchrun started {started} processes, and devices={trainer.num_devices} on num_nodes={trainer.num_nodes} ask for "
            f"{trainer.world_size}: give devices (per machine) and num_nodes that multiply to {started}, with strategy='ddp'"
        )
    parts = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return parts["rank"], parts["num_replicas"]


def looked_at(device: torch.device, step: int) -> bool:
    """Whether a number on the device is asked for at this step: an accelerator has to be waited for."""
    return device.type == "cpu" or step % _LOOK_EVERY == 0


def mean_of_all(trainer: Any, value: Tensor) -> Tensor:
    """The mean over the processes, the same in each."""
    return value if trainer.world_size == 1 else trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")


def largest_of_all(trainer: Any, value: float) -> float:
    """The largest over the processes, the same in each."""
    if trainer.world_size == 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max"))


def check_same_start(trainer: Any) -> None:
    """All processes go on from the same state."""
    here, furthest = trainer.global_step, int(largest_of_all(trainer, trainer.global_step))
    if here != furthest:
        raise ConfigError(
            f"process {trainer.global_rank} would begin at step {here}, another one at step {furthest}: all of them must see the same run "
            "directory, with the same checkpoint to resume from"
        )


def names_of_all(trainer: Any, names: list[str]) -> list[str]:
    """The names that any of the processes has, each once."""
    if trainer.world_size == 1:
        return names
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, names)
    return list(dict.fromkeys(name for some in found for name in some))


def common(error: Exception) -> Exception:
    """An error that all processes have at once, as this one raises it: the first in full, the others in short."""
    return error if is_first() else ProcessError(f"stopped together with the first process, which says why ({type(error).__name__})")


@contextmanager
def with_the_others(trainer: Any) -> Iterator[None]:
    """A lost connection is one clear error: another process ended, and what it said itself is the reason."""
    try:
        yield
    except RuntimeError as error:
        if _UNUSED in str(error):
            advice = "give strategy='ddp_find_unused_parameters_true'"
            raise common(ConfigError(f"some weights of this network have no part in the loss: {advice}")) from None
        if trainer.world_size == 1 or not _is_of_the_connection(error):
            raise
        line = " ".join(str(error).split())
        raise ProcessError(
            f"another of the {trainer.world_size} processes of this training ended or cannot be reached: what it said before is the "
            f"reason, and if it said nothing it was killed, often for want of memory (here: {line[:200]})"
        ) from None


def _is_of_the_connection(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    said = str(error).lower()
    return any(word in said for word in _CONNECTION)
