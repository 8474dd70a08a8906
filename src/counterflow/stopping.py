"""Ctrl-C and SIGTERM wait until a step of training is done and its state is written; then they do what they always do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBetweenSteps(Exception):
    """Raised by the loop that was asked to stop."""


class StopRequest:
    """What was asked of a training loop; signals that are ignored stay ignored, and those of other threads are not ours."""

    def __init__(self) -> None:
        self.signum: int | None = None
        is_ours = threading.current_thread() is threading.main_thread()
        found = {signum: signal.getsignal(signum) for signum in SIGNALS} if is_ours else {}
        self.before: dict[int, Any] = {signum: does for signum, does in found.items() if does not in (None, signal.SIG_IGN)}

    def listen(self) -> None:
        """From now on a signal is noted; a second one acts at once."""
        for signum in self.before:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self.signum is None:
            self.signum = signum
        else:
            self.restore()
            signal.raise_signal(signum)

    def restore(self) -> None:
        """What signals did before."""
        for signum, does in self.before.items():
            signal.signal(signum, does)


@contextmanager
def between_steps() -> Iterator[StopRequest]:
    """A loop inside looks at ``request.signum`` after every step, and raises `StoppedBetweenSteps` when everything is written."""
    request = StopRequest()
    finished = False
    try:
        with suppress(StoppedBetweenSteps):
            yield request
            finished = True
    finally:
        request.restore()
    if request.signum is not None:
        signal.raise_signal(request.signum)
    if not finished:
        raise KeyboardInterrupt
