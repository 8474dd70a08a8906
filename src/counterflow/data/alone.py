"""One process at a time writes into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counterflow.errors import CounterflowError, DataError


@contextmanager
def alone(folder: Path, refusal: CounterflowError | None = None) -> Iterator[None]:
    """Claim a folder, or raise `refusal`; the claim ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal or DataError(f"another process is writing {os.fspath(folder)!r}: wait for it") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
