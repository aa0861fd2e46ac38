"""What can happen to a run: signals that ask it to stop, numbers that are none, a loss that runs away."""

import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; what `kill`, torchrun and most schedulers send; what Slurm sends ahead of the time limit, if asked to.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

# How long a process that was asked to stop may wait for the others before it ends: one of them may be dead.
PATIENCE = 45.0


class StopSignals:
    """Remembers a signal that asks the run to stop, so that it can finish its step and save; the second one is obeyed
    at once. `received` is 0, or the signal's number. patience: seconds to wait for the other processes then, if any."""

    def __init__(self, *, patience: float | None = None) -> None:
        self.received = 0
        self._patience = patience
        self._answered = time.monotonic()
        self._timer: threading.Timer | None = None

    @contextmanager
    def watching(self) -> Iterator["StopSignals"]:
        """Listen inside, where Python can: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield self
        finally:
            self._calm()
            for number, handler in before.items():
                signal.signal(number, handler)

    def answered(self) -> None:
        """The others have answered, after a step that took as long as it took: nobody waits in vain."""
        now = time.monotonic()
        if self._patience:
            self._patience = max(self._patience, 3 * (now - self._answered))
        self._answered = now
        self._calm()

    def _calm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            again = "; once more to stop at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}\n".encode())
            if self._patience:
                self._timer = threading.Timer(self._patience, _give_up, (number,))
                self._timer.daemon = True
                self._timer.start()
        self.received = self.received or number


def _give_up(number: int) -> None:
    os.write(2, b"another process of the run does not answer: ending without a further checkpoint\n")
    os._exit(128 + number)


class Divergence:
    """Warns where the loss lies far above what it was: the median of the last 20 above twice that of the last 500."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=500)
        self._quiet = 0

    def look(self, step: int, loss: float) -> None:
        """Take the loss of a step; if the run seems to diverge, say so on the error stream, then be silent a while."""
        if math.isfinite(loss):
            self._losses.append(loss)
        self._quiet -= 1
        if len(self._losses) < 100 or self._quiet > 0 or step % 10:
            return
        recent, usual = statistics.median(list(self._losses)[-20:]), statistics.median(self._losses)
        if recent > 2 * usual:
            self._quiet = 500
            print(
                f"\nstep {step}: the loss is {recent:.3g}, far above its running median {usual:.3g}; the run seems to "
                "diverge: go back to an earlier checkpoint, with a lower base_lr, a longer warm-up or clip_grad",
                file=sys.stderr,
            )
