"""Work on strangers' files in processes that may hang, crash or grow without harm: each is replaced, the file is named.

Each process is handed one item at a time. One that gives no sign of life for too long is killed, one that needs too
much memory is refused it, and one that dies is replaced; the rest goes on.
"""

import errno
import fcntl
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from common.errors import InputError
from dataset_loader.workers import forking_context

START = 120.0  # seconds that a process may take until it is there: the first one imports torch
SILENCE = 60.0  # seconds without a sign of life after which a process counts as hung
MEMORY = 3 << 30  # bytes of its own that a process may take: an 8K frame and its references fit
TRIES = 2  # at an item whose process was killed: once may be somebody else's doing, such as a lack of memory

Item = TypeVar("Item")


@dataclass(frozen=True)
class Failure:
    """Why there is no result: `kind` is "error" (an exception), "full" (the disk), "hung" or "crashed"; `reason` a
    sentence without its subject."""

    kind: str
    reason: str


class _Worker:
    """One process, and the item that it has."""

    def __init__(self, context: Any, function: Callable, silence: float, memory: int) -> None:
        self.connection, theirs = context.Pipe()
        lifeline, self.lifeline = context.Pipe(duplex=False)
        arguments = (theirs, lifeline, function, silence, memory)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        lifeline.close()
        self.item: Any = None
        self.busy = False
        self.heard = time.monotonic() + START

    def give(self, item: Any) -> None:
        self.item, self.busy = item, True
        self.heard = max(self.heard, time.monotonic())
        with suppress(OSError):  # dead already: seen when its end is waited for
            self.connection.send(item)

    def end(self) -> int | None:
        """Kill it, and return the exit code it had."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.lifeline.close()
        return self.process.exitcode


def supervise(
    function: Callable[[Item], Any],
    items: Iterable[Item],
    *,
    jobs: int,
    silence: float = SILENCE,
    memory: int = MEMORY,
) -> Iterator[tuple[Item, Any]]:
    """Yield (item, `function(item)` or a `Failure`) for every item, in the order in which they are done.

    function: a top-level function; it calls `alive` from time to time where it takes long. jobs: processes. silence:
    seconds between signs of life after which a process is killed. memory: bytes that a process may take.
    """
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    if not silence > 0:
        raise InputError(f"the time limit is {silence} s; it must be above 0")
    waiting = iter(items)
    again: deque[Item] = deque()
    tries: dict[Item, int] = {}
    workers: list[_Worker] = []
    end = object()
    try:
        while True:
            for worker in [None] * (jobs - len(workers)) + [worker for worker in workers if not worker.busy]:
                item: Any = again.popleft() if again else next(waiting, end)
                if item is end:
                    break
                if worker is None:
                    worker = _Worker(forking_context(), function, silence, memory)
                    workers.append(worker)
                worker.give(item)
            busy = [worker for worker in workers if worker.busy]
            if not busy:
                return
            patience = min(worker.heard for worker in busy) + silence - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(0.0, patience))
            for worker in busy:
                if worker.connection in ready:
                    try:
                        done, result = worker.connection.recv()
                    except (EOFError, OSError):
                        code = _exit_code(worker)
                        workers.remove(worker)
                        tries[worker.item] = tries.get(worker.item, 0) + 1
                        if tries[worker.item] < TRIES:
                            again.append(worker.item)
                        else:
                            yield worker.item, Failure("crashed", f"crashes the decoder ({_ending(code)})")
                        continue
                    worker.heard = time.monotonic()
                    if done:
                        worker.busy = False
                        yield worker.item, result
                elif time.monotonic() - worker.heard >= silence:
                    worker.end()
                    workers.remove(worker)
                    yield worker.item, Failure("hung", f"gave nothing for {silence:g} s")
    finally:
        for worker in workers:
            worker.end()


def alive() -> None:
    """A sign of life from inside a supervised function; elsewhere nothing."""
    if _sign is not None:
        _sign()


_sign: Callable[[], None] | None = None


def _serve(connection: Connection, lifeline: Connection, function: Callable, silence: float, memory: int) -> None:
    """What a process does: item in, result out, until the other end is gone."""
    global _sign
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who supervises
    _end_with(lifeline)
    with suppress(ValueError, OSError):  # where the system knows or allows no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (_own_memory() + memory, resource.RLIM_INFINITY))
    said = 0.0

    def sign() -> None:
        nonlocal said
        if time.monotonic() - said > min(1.0, silence / 4):
            said = time.monotonic()
            connection.send((False, None))

    _sign = sign
    with suppress(EOFError, OSError):
        connection.send((False, None))  # from here on silence counts
        while True:
            item = connection.recv()
            connection.send((True, _attempt(function, item, memory)))


def _end_with(lifeline: Connection) -> None:
    """Be killed by the system when the other end is gone, also amid a decode that hangs: an orphan must not write."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, whose default is
    if lifeline.poll():  # the end of the process; here it came before it was asked for
        os._exit(1)


def _attempt(function: Callable, item: Any, memory: int) -> Any:
    try:
        return function(item)
    except MemoryError:
        return Failure("error", f"needs more than {memory / 2**30:.1f} GiB of memory")
    except Exception as error:  # of a damaged file anything may come; it is listed, with its words
        causes = (error, error.__cause__, error.__context__)
        full = any(getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
        words = " ".join(str(error).split())
        if not isinstance(error, InputError):
            words = f"cannot be decoded ({type(error).__name__}: {words})"
        return Failure("full" if full else "error", getattr(error, "reason", words))


def _own_memory() -> int:
    """Bytes of data that this process has already: what its libraries took when they were imported."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return 0


def _exit_code(worker: _Worker) -> int | None:
    worker.process.join(5)
    return worker.end()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
