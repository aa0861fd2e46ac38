"""Threads beside the one that follows: what comes next is read ahead, and what is done is scored and written.

Decoding, PNG and the counting of pixels let go of Python's lock. Order is kept, memory is bounded, and an error of a
thread is raised where its result is taken.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, TypeVar

T = TypeVar("T")

WORKERS = min(4, os.cpu_count() or 1)
GRACE = 0.5  # seconds after Ctrl-C for what is nearly done


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The items in order; a thread asks for the next `count` while one is in use."""
    stream, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, stream, end) for _ in range(count))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, stream, end))
                yield item  # type: ignore[misc]  # not the end
        finally:
            pool.shutdown(cancel_futures=True)


def finished(jobs: Iterable[Callable[[], T]], ended: Event, workers: int = WORKERS) -> Iterator[T]:
    """What jobs return, in order: they run in threads while the next are made, at most `workers` + 1 unfinished ones.

    When making the next one fails, those at hand are finished. After Ctrl-C they have `GRACE` seconds; then `ended` is
    set, which tells them to stop.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                while pending and (len(pending) > workers or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except Exception:
            wait(pending)
            raise
        finally:
            wait(pending, timeout=GRACE)
            ended.set()
            pool.shutdown(cancel_futures=True)


class Stoppable(list[Any]):
    """A list that a thread goes through until `ended` is set, and then no further."""

    def __init__(self, items: Iterable[Any], ended: Event) -> None:
        super().__init__(items)
        self.ended = ended

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if self.ended.is_set():
            raise CancelledError
        return super().__getitem__(index)
