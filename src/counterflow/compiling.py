"""`torch.compile` of a backbone, for as long as it is wanted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from counterflow.errors import ConfigError

COMPILERS = ("g++", "clang++", "c++", "cl")


def check_compiler() -> None:
    """Raise a `ConfigError` if there is no C++ compiler, without which `torch.compile` fails late and at length."""
    if shutil.which(os.environ.get("CXX", COMPILERS[0])) is None and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(
            f"compile=True needs a C++ compiler, and none of {', '.join(COMPILERS)} is on the PATH: install one, "
            "name it in the environment variable CXX, or leave compile out"
        )


@contextmanager
def compiled(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, calls of `network` run through compiled graphs, one for each shape of its arguments; the weights stay where they are.

    The first call takes a minute or more, so it pays for long runs of equal batches only. Copies are not compiled.

    Raises
    ------
    ConfigError
        If there is no C++ compiler to do it with.
    """
    if not wanted:
        yield
        return
    check_compiler()
    network.compile(dynamic=False)
    try:
        yield
    finally:
        network._compiled_call_impl = None  # torch has no public way back
