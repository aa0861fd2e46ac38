"""What can happen to a run: signals that ask it to stop, NaN, a loss that runs away."""

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
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from common.errors import InputError
from ml.ranks import Ranks
from ml.reporting import Listener, StepRecord
from ml.state import Progress

# Ctrl-C; what `kill`, torchrun and most schedulers send; what Slurm sends ahead of the time limit, if asked to.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

# Seconds that a rank that was asked to stop waits for the others before it ends: one of them may be dead.
STOP_PATIENCE = 45.0


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


def leave(number: int) -> NoReturn:
    """End as a signal asks, once everything is saved."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _give_up(number: int) -> None:
    os.write(2, b"another process of the run does not answer: ending without a further checkpoint\n")
    os._exit(128 + number)


class Divergence(Listener):
    """Warns where the loss lies far above what it was: the median of the last 20 above twice that of the last 500."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=500)
        self._quiet = 0

    def on_step(self, record: StepRecord) -> None:
        if record.finite:
            self._losses.append(record.result.loss)
        self._quiet -= 1
        if len(self._losses) < 100 or self._quiet > 0 or record.step % 10:
            return
        recent, usual = statistics.median(list(self._losses)[-20:]), statistics.median(self._losses)
        if recent > 2 * usual:
            self._quiet = 500
            tqdm.write(
                f"\nstep {record.step}: the loss is {recent:.3g}, far above its running median {usual:.3g}; the run "
                "seems to diverge: go back to an earlier checkpoint, with a lower learning rate, a longer warm-up or "
                "clip_grad",
                file=sys.stderr,
            )


class Nonfinite(Listener):
    """Ends the run after more than `most` steps whose loss or gradient was not finite; the steps were skipped."""

    def __init__(self, most: int, progress: Progress, folder: Path, ranks: Ranks) -> None:
        self._most, self._progress, self._folder, self._ranks = most, progress, folder, ranks

    def on_step(self, record: StepRecord) -> None:
        if record.finite:
            return
        result = record.result
        shares = self._ranks.gather((math.isfinite(result.own_loss), record.paths))
        guilty = [path for fine, paths in shares if not fine for path in paths]
        paths = list(dict.fromkeys(guilty or [path for _, paths in shares for path in paths]))
        number = f"loss is {result.loss}"
        if math.isfinite(result.loss):
            number = f"gradient's norm is {result.grad_norm}"
        files = f", with {', '.join(paths)} in the batch" if paths else ""
        what = f"the {number} at step {record.position} of epoch {record.epoch} (learning rate {record.lr:.3g}){files}"
        skipped = self._progress.skipped
        if skipped > self._most:
            raise InputError(
                f"{what}; the earlier checkpoints are kept in {self._folder}: lower base_lr, lengthen the warm-up, "
                "clip the gradients (clip_grad) or skip such steps (skip_nonfinite), and resume"
            )
        if self._ranks.first:
            tqdm.write(f"{what}: skipped, {skipped} of {self._most}", file=sys.stderr)
