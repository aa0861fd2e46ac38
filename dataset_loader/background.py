"""A thread that prepares what the training thread will ask for next, and memory of which it pins no more than it needs.

The training thread has 20 to 50 ms of its own work in each step (it starts the GPU's kernels). Copying a batch of 256
pairs out of the memory of the process that loaded it takes 13 ms more; here another thread does that meanwhile.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class Background(Generic[T]):
    """The items of an iterator, for which a thread of its own asks, up to `ahead` of them before they are wanted.

    items: is given the event that asks it to end, which it looks at where it waits. An exception there is raised here.
    """

    def __init__(self, items: Callable[[threading.Event], Iterator[T]], ahead: int) -> None:
        self._ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name="batches", daemon=True)
        self._thread.start()

    def _work(self, items: Callable[[threading.Event], Iterator[T]]) -> None:
        try:
            coming = items(self._stopped)
            while self._room.acquire() and not self._stopped.is_set():
                self._ready.put((next(coming), None))
        except StopIteration:
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise RuntimeError("another iteration over this loader has begun")
        item, error = self._ready.get()  # Ctrl-C gets through
        if error is not None:
            self._ready.put((None, error))  # for whoever asks again
            raise StopIteration if isinstance(error, StopIteration) else error  # a new one holds no frames
        self._room.release()
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Ask the thread to end, and wait until it has."""
        self._stopped.set()
        self._room.release()
        if self._thread is not threading.current_thread():  # else the garbage collector closes it
            self._thread.join()


class Buffers:
    """Memory for batches, in slots of one block, each used again when nobody holds the batch that lies there.

    pinned: page-locked, for copies to a GPU that overlap with its work; it is costly to lock, and is never swapped out.
    torch's own allocator rounds each pinned batch up to a power of two (77 MB take 134); here the block is one, and its
    `least` slots or more fill it. A copy that a GPU still makes of a batch which is no longer held, is waited for.
    """

    def __init__(self, least: int, *, pinned: bool) -> None:
        self._least, self._pinned = least, pinned
        self._size = -1
        self._block = np.empty(0, np.uint8)
        self._unused: deque[tuple[int, Any]] = deque()  # numbers of slots, and what to wait for

    def take(self, size: int) -> np.ndarray:
        """So many bytes: uint8 [size]. If all slots are held, memory of its own."""
        if size > self._size:
            self._size, self._block = size, self._allocate(1 << (self._least * size - 1).bit_length())
            self._unused = deque((number, None) for number in range(len(self._block) // size))
        if not self._unused:
            return self._allocate(size)
        number, copied = self._unused.popleft()
        if copied is not None:
            copied.synchronize()
        taken = self._block[number * self._size :][:size]  # a tensor made of it holds this very array
        weakref.finalize(taken, _give_back, self._unused, number, self._pinned).atexit = False
        return taken

    def _allocate(self, size: int) -> np.ndarray:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).numpy()


def _give_back(unused: deque[tuple[int, Any]], number: int, pinned: bool) -> None:
    copied = torch.cuda.Event() if pinned else None
    if copied is not None:
        copied.record()
    unused.append((number, copied))
