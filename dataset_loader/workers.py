"""Processes that load batches: in order, into memory that the loader owns, replaced when they hang or die.

torch's DataLoader waits for ever for a worker that hangs, and ends the run when one dies. Here each process writes into
a small shared memory what it is trying, and since when. One that takes too long is killed, a new one takes its place,
and the batch is loaded again without the file at fault. A batch depends on its keys and on the files left out alone, so
nothing else changes by that.
"""

import gc
import math
import mmap
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from common.errors import InputError

AHEAD = 2  # batches that each process has been told to load: while one is fetched it works on the next
POLL = 0.5  # seconds between looks at processes that do not answer
AWAY = 10.0  # a pause between two looks in which this process may itself have been stopped: it counts against nobody
START = 120.0  # seconds that a process may take to start and to import what it needs

Key = tuple[int, int]  # (epoch, index)


class Loads(Protocol):
    """What the processes have a copy of: it is pickled, once for each."""

    def load_batch(
        self,
        keys: Sequence[Key],
        *,
        excluded: dict[str, str],
        trying: Callable[[int, int], None],
        allocate: Callable[[Sequence[int]], torch.Tensor],
    ) -> dict[str, Any]:
        """The samples with these keys, all but `video` plain or numpy.

        `video` [B, F, 3, H, W] lies in the memory that `allocate([B, F, H, W, 3])` gives.

        excluded: names of files, and why they are not to be opened. trying(row, attempt) is called before each file.
        """
        ...

    def name_tried(self, key: Key, attempt: int) -> str:
        """The name of the file that an attempt at a sample opens."""
        ...


class _Task(NamedTuple):
    number: int
    keys: Sequence[Key]


class _Memory:
    """A block of memory that two processes see. It grows to what is asked of it, and ends with the last of the two."""

    def __init__(self, file: int | None = None) -> None:
        self._file = _memory_file() if file is None else file
        self._map: mmap.mmap | None = None
        weakref.finalize(self, os.close, self._file)

    def tensor(self, shape: Sequence[int]) -> torch.Tensor:
        """A uint8 tensor at its beginning."""
        size = math.prod(shape)
        if self._map is None or len(self._map) < size:
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=size).view(tuple(shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (DupFd(self._file),)


def _attached(duplicate: Any) -> _Memory:
    return _Memory(duplicate.detach())


def _memory_file() -> int:
    """A file without a name: in memory where the system has that (and not in /dev/shm, often only 64 MB in size)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("siammae")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Worker:
    """One process, the memory it shares, and the tasks that it has: the first is the one it works on."""

    def __init__(self, context: Any, loads: Loads) -> None:
        self.slots = [_Memory() for _ in range(AHEAD)]
        beat = _Memory()
        self.beat = beat.tensor([32]).view(torch.float64)  # task, row, attempt, since when
        self.beat[:] = torch.tensor([-1, 0, 0, time.monotonic()])
        self.tasks: deque[_Task] = deque()
        self._given = 0
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, loads, self.slots, beat), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: _Task, excluded: dict[str, str]) -> None:
        self.tasks.append(task)
        with suppress(OSError):  # a dead one is seen where answers are waited for
            self.connection.send((task, self._given % AHEAD, excluded))
        self._given += 1

    def end(self) -> int | None:
        """Kill the process; its exit code, None if it does not even die."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()
        return self.process.exitcode


class Pool:
    """`count` processes that load batches.

    time_limit: seconds that one attempt at one sample may take. max_lost: how many files may hang or kill their process
    before the run ends with an InputError that names them. lost: these files, and the reasons.
    """

    def __init__(self, loads: Loads, count: int, *, time_limit: float, max_lost: int) -> None:
        self._loads = loads
        self._context = forking_context()
        self._time_limit = time_limit
        self._max_lost = max_lost
        self._first = self._next = 0  # numbers of tasks: the first of the running iteration, and the next to be given
        self._done: dict[int, dict[str, Any] | Exception] = {}
        self._in_vain = 0  # processes that ended before they had tried a file, in a row
        self._looked = self._excused = time.monotonic()
        self.lost: dict[str, str] = {}
        self.workers = [_Worker(self._context, loads) for _ in range(count)]
        # before multiprocessing itself asks its processes, politely, to end, and waits for them
        Finalize(self, _end, args=(self.workers,), exitpriority=10)

    def batches(self, tasks: Iterable[Sequence[Key]], *, pin_memory: bool = False) -> Iterator[dict[str, Any]]:
        """The batches of these lists of keys, in their order. It ends an earlier iteration that was left unfinished."""
        waiting = iter(tasks)
        first = due = self._first = self._next
        self._done.clear()
        exhausted, patience = False, 0.0
        while True:
            if first != self._first:
                raise RuntimeError("another iteration over this loader has begun")
            self._receive(patience, pin_memory)
            while not exhausted and self._next - due < AHEAD * len(self.workers):
                free = min(self.workers, key=lambda worker: len(worker.tasks))
                if len(free.tasks) == AHEAD:
                    break
                keys = next(waiting, None)
                if keys is None:
                    exhausted = True
                else:
                    free.give(_Task(self._next, keys), self.lost)
                    self._next += 1
            patience = POLL
            if due in self._done:
                batch = self._done.pop(due)
                if isinstance(batch, Exception):
                    raise batch
                due, patience = due + 1, 0.0
                yield batch
            elif exhausted and due == self._next:
                return

    def _receive(self, timeout: float, pin_memory: bool) -> None:
        """Take what the processes have finished, and replace those that are dead or hang."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]
            try:
                slot, shape, rest = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(worker, None)
                continue
            self._in_vain = 0
            number = worker.tasks.popleft().number
            if number >= self._first:
                if not isinstance(rest, Exception):
                    video = worker.slots[slot].tensor(shape)
                    copied = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory).copy_(video)
                    rest["video"] = copied.permute(0, 1, 4, 2, 3)
                self._done[number] = rest
        now = time.monotonic()
        if now - self._looked > AWAY:
            self._excused = now
        self._looked = now
        for worker in list(self.workers):
            if worker.tasks:
                number, _, _, since = worker.beat.tolist()
                limit = self._time_limit + (0 if number == worker.tasks[0].number else START)
                if now - max(since, self._excused) > limit:
                    self._replace(worker, f"was not decoded within {self._time_limit:g} s")

    def _replace(self, worker: _Worker, reason: str | None) -> None:
        """Put a new process in the place of one that hangs (for that reason) or is dead (None)."""
        number, row, attempt, _ = (int(value) for value in worker.beat.tolist())
        code = worker.end()
        if worker.tasks and number == worker.tasks[0].number:
            name = self._loads.name_tried(worker.tasks[0].keys[row], attempt)
            died = f"its decoder died of {signal.Signals(-code).name}" if code and code < 0 else f"exited with {code}"
            self.lost[name] = reason or died
            if len(self.lost) > self._max_lost:
                said = "; ".join(f"{name} ({why})" for name, why in self.lost.items())
                raise InputError(f"{len(self.lost)} videos made their decoder hang or die: {said}")
        else:
            self._in_vain += 1
            if self._in_vain > 2 * len(self.workers):
                raise RuntimeError(f"processes that load data end, with code {code}, before they have opened a file")
        fresh = _Worker(self._context, self._loads)
        self.workers[self.workers.index(worker)] = fresh
        for task in worker.tasks:
            fresh.give(task, self.lost)


def _serve(connection: Connection, loads: Loads, slots: list[_Memory], shared: _Memory) -> None:
    """The life of a process: load batches until the other end is gone."""
    _leave_signals_to(os.getppid())
    torch.set_num_threads(1)
    gc.freeze()  # else each collection would copy pages that are shared with the process it was forked from
    beat = shared.tensor([32]).view(torch.float64).numpy()
    with suppress(EOFError, OSError):
        while True:
            task, slot, excluded = connection.recv()
            _answer(connection, loads, task, slot, slots[slot], excluded, beat)


def _leave_signals_to(parent: int) -> None:
    """What is sent to the whole group (Ctrl-C, a scheduler's warning) is for the process that waits for the batches to
    decide: it may want a few more of them. Once that is gone, this one ends."""

    def ask(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ask)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _answer(
    connection: Connection,
    loads: Loads,
    task: _Task,
    slot: int,
    memory: _Memory,
    excluded: dict[str, str],
    beat: np.ndarray,
) -> None:
    """Load one batch; all of it but the frames travels through the connection."""

    def trying(row: int, attempt: int) -> None:
        beat[:] = task.number, row, attempt, time.monotonic()

    trying(0, 0)
    try:
        batch = loads.load_batch(task.keys, excluded=excluded, trying=trying, allocate=memory.tensor)
    except InputError as error:
        connection.send((slot, None, InputError(str(error))))
    except Exception:
        connection.send((slot, None, RuntimeError(f"in a process that loads data:\n{traceback.format_exc()}")))
    else:
        shape = tuple(batch.pop("video").permute(0, 1, 3, 4, 2).shape)  # as it lies in memory
        connection.send((slot, shape, batch))


def forking_context() -> Any:
    """Processes are forked from a fresh one that has imported this package: they start at once and inherit no threads.

    A fork of this process itself may hold a lock of torch's or FFmpeg's threads for ever.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_loader.dataset"])
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # what forks inherits the mask: Ctrl-C while it imports is for this process to report
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
