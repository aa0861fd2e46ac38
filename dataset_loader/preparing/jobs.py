"""Long runs over many files: divided among machines, resumed after a kill, in processes that may die."""

import glob
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from common.errors import InputError
from common.files import locked
from dataset_loader.files import find_videos
from dataset_loader.processes import MEMORY, Failure, supervise

FLUSHED = 2.0  # seconds of work that a loss of power may cost

T = TypeVar("T")


def names_below(folder: Path) -> list[str]:
    """The names of all videos below a folder, relative to it, with `/`, sorted."""
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in find_videos(folder)]


def printable(text: str) -> str:
    """A name that is no UTF-8 in a form that every output takes."""
    return text.encode("utf-8", "replace").decode()


def take_shard(things: Sequence[T], shard: str) -> list[T]:
    """The things that shard "i/n" has to do, i from 1 to n: every n-th, so that no two shards share one.

    The sequence must be the same on every machine.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    i, n = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"the shard is {shard!r}; it must be i/n, such as 1/8 … 8/8: the i-th of n machines")
    return list(things[i - 1 :: n])


def shard_name(shard: str, before: str = "", after: str = "") -> str:
    """What a shard adds to the name of a file: "2-of-8" between `before` and `after`; nothing for "1/1"."""
    return "" if shard == "1/1" else f"{before}{shard.replace('/', '-of-')}{after}"


def processes(jobs: int | None) -> int:
    """How many processes to work with: by default as many as this one has cores."""
    if jobs is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    return jobs


class Journal:
    """What a run has found so far, `entries`: one JSON line each, in a file that survives a kill at any moment."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._flushed = time.monotonic()
        file.seek(0)
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # a line without its end was being written when the run was killed
        file.truncate(len(whole))
        self.entries: dict[str, Any] = {}
        for line in whole.splitlines():
            with suppress(ValueError, TypeError):  # after a loss of power a line may be anything
                name, self.entries[name] = json.loads(line)

    def add(self, name: str, value: Any) -> None:
        self.entries[name] = value
        self._file.write(json.dumps([name, value]).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._flushed > FLUSHED:
            self.flush()

    def flush(self) -> None:
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def remove(self) -> None:
        Path(self._file.name).unlink(missing_ok=True)


@contextmanager
def journal(result: Path) -> Iterator[Journal]:
    """The journal of the file `result`, which is made of it at the end; this process alone has it until then."""
    path = result.with_name(f".{result.name}.journal")

    def busy() -> None:
        raise InputError(f"{path} is held by another run, which is at work there; wait until it ends")

    with ExitStack() as stack:
        try:
            file = stack.enter_context(locked(path, busy))
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); choose another place with --out") from error
        for left in path.parent.glob(f".{glob.escape(result.name)}.*.tmp"):  # by a run that was killed
            left.unlink(missing_ok=True)
        found = Journal(file)
        try:
            yield found
        finally:
            if not found.entries:
                found.remove()


def run(
    function: Callable[[T], Any], items: Sequence[T], *, jobs: int, silence: float, memory: int = MEMORY
) -> Iterator[tuple[T, Any]]:
    """The results of `supervise`, while a line shows how many are done, how fast, and the time left."""
    from tqdm import tqdm

    interval = 0.5 if sys.stdout.isatty() else 30
    results = supervise(function, items, jobs=jobs, silence=silence, memory=memory)
    for item, result in tqdm(
        results, total=len(items), unit=" files", mininterval=interval, file=sys.stdout, disable=not items
    ):
        if isinstance(result, Failure) and result.kind == "full":
            raise InputError("the disk is full; make room, and the same command goes on")
        yield item, result
