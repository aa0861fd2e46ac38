"""Work on strangers' files in processes that may hang, crash or grow without harm: each is replaced, the file is named.

Each process calls one function, task after task. It notes in a few bytes of shared memory which task it is at and when
it last gave a sign of life (`alive`). A process that is silent for too long is killed, one that needs too much memory
is refused it, and one that dies is replaced; the others go on. All end with the process that started them.
"""

import errno
import fcntl
import gc
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, TypeVar

from common.errors import InputError

POLL = 0.5  # seconds between looks at processes that do not answer
AWAY = 10.0  # seconds between two looks that mean that this process itself was paused (Ctrl-Z): no worker is blamed
START = 120.0  # seconds that a process may take to start and to import what it needs
SILENCE = 60.0  # seconds without a sign of life after which a process counts as hung
MEMORY = 3 << 30  # bytes of its own that a process may take: an 8K frame and its references fit
TRIES = 2  # attempts at an item whose process dies: the first death may have another cause, such as a lack of memory

Item = TypeVar("Item")


@dataclass(frozen=True)
class Failure:
    """Why there is no result.

    kind: "error" (an exception), "full" (the disk), "hung" or "crashed". reason: a sentence without its subject. note:
    the two numbers that the process noted last (see `alive`).
    """

    kind: str
    reason: str
    note: tuple[int, int] = field(default=(0, 0), compare=False)


class Memory:
    """A block of memory that two processes see. It grows to what is asked of it, and ends with the last of the two."""

    def __init__(self, file: int | None = None) -> None:
        self._file = _memory_file() if file is None else file
        self._map: mmap.mmap | None = None
        weakref.finalize(self, os.close, self._file)

    def view(self, size: int) -> mmap.mmap:
        """At least its first `size` bytes."""
        if self._map is None or len(self._map) < size:
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return self._map

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (DupFd(self._file),)


def _attached(duplicate: Any) -> Memory:
    return Memory(duplicate.detach())


def _memory_file() -> int:
    """A file without a name: in memory where the system has that (and not in /dev/shm, often only 64 MB in size)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("siammae")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slot(NamedTuple):
    """One of a process's memories, with a result in it, which stays as it is until the slot is freed."""

    memory: Memory
    number: int
    unused: list[int]
    """numbers of the slots of this process that are free"""

    def free(self) -> None:
        self.unused.append(self.number)


class _Worker:
    """One process, the memory it shares, and the tasks that it has: the first is the one it works on."""

    def __init__(self, context: Any, function: Callable, ahead: int, memory: int | None) -> None:
        self._slots = [Memory() for _ in range(ahead)]  # one for each task that it can have
        self.unused = list(range(ahead))
        beat = Memory()
        self.beat = _beating(beat)
        self.beat[0] = -1
        self.tasks: deque[tuple[int, Any, int]] = deque()  # numbered, from 0 on, each with its slot
        self._given = count()
        self.heard = time.monotonic()
        self.connection, theirs = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        arguments = (theirs, lifeline, beat, self._slots, function, memory)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        lifeline.close()

    def give(self, task: Any) -> None:
        if not self.tasks:
            self.heard = time.monotonic()
        number = self.unused.pop()
        self.tasks.append((next(self._given), task, number))
        with suppress(OSError):  # a dead one is seen where answers are waited for
            self.connection.send((number, task))

    def finish(self) -> tuple[Any, Slot]:
        """Its first task, which is done, and where the result lies."""
        _, task, number = self.tasks.popleft()
        return task, Slot(self._slots[number], number, self.unused)

    def end(self) -> int | None:
        """Kill the process; its exit code, None if it does not even die."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()
        self._lifeline.close()
        return self.process.exitcode


class Crew:
    """Up to `size` processes that call `function(task, memory)`, each with `ahead` tasks at most; started when needed.

    function: can be pickled; it calls `alive` from time to time where it takes long. The memory is for large results; a
    result whose slot is not freed yet counts as one of the tasks. time_limit: seconds between signs of life after which
    a process is killed. memory: bytes that a process may take.
    """

    def __init__(
        self, function: Callable, size: int, *, time_limit: float, ahead: int = 1, memory: int | None = None
    ) -> None:
        self._start = partial(_Worker, forking_context(), function, ahead, memory)
        self._size, self._time_limit = size, time_limit
        self._in_vain = 0  # processes that ended before they had begun a task, in a row
        self._looked = self._excused = time.monotonic()
        self._workers: list[_Worker] = []
        # before multiprocessing itself asks its processes, politely, to end, and waits for them
        self.close = Finalize(self, _end, args=(self._workers,), exitpriority=10)

    @property
    def busy(self) -> bool:
        return any(worker.tasks for worker in self._workers)

    @property
    def has_room(self) -> bool:
        return len(self._workers) < self._size or any(worker.unused for worker in self._workers)

    def give(self, task: Any) -> None:
        """Give a task to the process that has the fewest."""
        free = min((w for w in self._workers if w.unused), key=lambda worker: len(worker.tasks), default=None)
        if free is None or (free.tasks and len(self._workers) < self._size):
            free = self._start()
            self._workers.append(free)
        free.give(task)

    def results(self, timeout: float) -> Iterator[tuple[Any, Any, Slot]]:
        """(task, result or `Failure`, slot) of what is done within so many seconds, at least one if there is any."""
        by_connection = {worker.connection: worker for worker in self._workers if worker.tasks}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]
            try:
                result = worker.connection.recv()
            except (EOFError, OSError):
                yield from self._replace(worker, hung=False)
                continue
            self._in_vain = 0
            worker.heard = time.monotonic()
            task, slot = worker.finish()
            yield task, result, slot
        now = time.monotonic()
        if now - self._looked > AWAY:
            self._excused = now
        self._looked = now
        for worker in list(self._workers):
            if worker.tasks:
                number, since = worker.beat[0], worker.beat[1]
                limit = self._time_limit + (0 if number == worker.tasks[0][0] else START)
                if now - max(since, worker.heard, self._excused) > limit:
                    yield from self._replace(worker, hung=True)

    def _replace(self, worker: _Worker, *, hung: bool) -> Iterator[tuple[Any, Failure, Slot]]:
        """End a process that hangs or is dead; give its tasks to a new one, but for the one it was working on."""
        if not hung:
            worker.process.join(5)  # its own exit code, not that of our kill
        code = worker.end()
        self._workers.remove(worker)
        if worker.beat[0] == worker.tasks[0][0]:
            (task, slot), note = worker.finish(), (int(worker.beat[2]), int(worker.beat[3]))
            ending = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
            failure = Failure("crashed", f"crashes the decoder (its process {ending})", note)
            if hung:
                failure = Failure("hung", f"gave nothing for {self._time_limit:g} s", note)
            yield task, failure, slot
        else:
            self._in_vain += 1
            if self._in_vain > 2 * self._size:
                raise RuntimeError(f"processes end, with code {code}, before they have begun their work")
        for _, task, _ in worker.tasks:
            self.give(task)


def alive(first: int = 0, second: int = 0) -> None:
    """A sign of life from inside a supervised function, with two numbers that say where it is; elsewhere nothing."""
    if _beat is not None:
        _beat[1], _beat[2], _beat[3] = time.monotonic(), first, second


_beat: Any = None


def _beating(memory: Memory) -> Any:
    """Number of the task, time of the last sign of life, and two numbers of its own: float64 [4]."""
    return memoryview(memory.view(32)).cast("d")


def _serve(
    connection: Connection, lifeline: Connection, beat: Memory, slots: list[Memory], function: Callable, memory: int
) -> None:
    """The life of a process: task in, result out, until the other end is gone."""
    global _beat
    # What is sent to the whole group (Ctrl-C, a scheduler's warning) is for the process that waits for the results.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    _end_with(lifeline)
    if memory is not None:
        with suppress(ValueError, OSError):  # where the system knows or allows no such limit
            resource.setrlimit(resource.RLIMIT_DATA, (_own_memory() + memory, resource.RLIM_INFINITY))
    gc.freeze()  # else each collection would copy pages that are shared with the process it was forked from
    _beat = _beating(beat)
    with suppress(EOFError, OSError):
        for number in count():
            slot, task = connection.recv()
            alive()
            _beat[0] = number
            connection.send(function(task, slots[slot]))


def _end_with(lifeline: Connection) -> None:
    """Be killed by the system when the other end is gone, also amid a decode that hangs: an orphan must not write."""
    with suppress(OSError, AttributeError):  # where the system knows no such signal, a process ends when it is idle
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO by default
    if lifeline.poll():  # ends the process; here it came before it was asked for
        os._exit(1)


def _own_memory() -> int:
    """Bytes of data that this process has already: what its libraries took when they were imported."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return 0


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def supervise(
    function: Callable[[Item], Any],
    items: Iterable[Item],
    *,
    jobs: int,
    silence: float = SILENCE,
    memory: int = MEMORY,
) -> Iterator[tuple[Item, Any]]:
    """Yield (item, `function(item)` or a `Failure`) for every item, in the order in which they are done.

    function: a top-level function, see `Crew`. jobs: processes. silence: seconds between signs of life after which a
    process is killed. memory: bytes that a process may take.
    """
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    if not silence > 0:
        raise InputError(f"the time limit is {silence} s; it must be above 0")
    waiting, end = iter(items), object()
    tries: Counter[Item] = Counter()
    crew = Crew(_Guarded(function, memory), jobs, time_limit=silence, memory=memory)
    with closing(crew):
        while True:
            while crew.has_room and (item := next(waiting, end)) is not end:
                crew.give(item)
            if not crew.busy:
                return
            for item, result, slot in crew.results(POLL):
                slot.free()
                tries[item] += 1
                if isinstance(result, Failure) and result.kind == "crashed" and tries[item] < TRIES:
                    crew.give(item)
                else:
                    yield item, result


@dataclass(frozen=True)
class _Guarded:
    """A function whose exceptions are results: of a damaged file anything may come; it is listed, with its words."""

    function: Callable
    memory: int

    def __call__(self, item: Any, _: Memory) -> Any:
        try:
            return self.function(item)
        except MemoryError:
            return Failure("error", f"needs more than {self.memory / 2**30:.1f} GiB of memory")
        except Exception as error:
            causes = (error, error.__cause__, error.__context__)
            full = any(getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
            words = " ".join(str(error).split())
            if not isinstance(error, InputError):
                words = f"cannot be decoded ({type(error).__name__}: {words})"
            return Failure("full" if full else "error", getattr(error, "reason", words))


def forking_context() -> Any:
    """Processes are forked from a fresh one that has imported what they need: they start fast and inherit no threads.

    A fork of this process itself may hold a lock of torch's or FFmpeg's threads for ever.
    """
    context = multiprocessing.get_context("forkserver")
    # Who only decodes needs no torch, and then neither do the processes: they start sooner, and are smaller.
    loader = "dataset_loader.dataset" if "torch" in sys.modules else "dataset_loader.decoding"
    context.set_forkserver_preload([loader, __name__])
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    folder = tempfile.tempdir
    if len(tempfile.gettempdir()) > 60:  # the name of a socket has 107 bytes at most
        tempfile.tempdir = next((short for short in ("/tmp", "/var/tmp") if os.access(short, os.W_OK)), folder)
    try:  # what forks inherits the mask: Ctrl-C while it imports is for this process to report
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = folder
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
