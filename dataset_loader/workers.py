"""Processes that load batches: in order, into memory that the loader owns, replaced when they hang or die.

torch's DataLoader waits for ever for a worker that hangs, and ends the run when one dies. Here the batch is loaded
again without the file at fault. A batch depends on its keys and on the files left out alone, so nothing else changes.
"""

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from common.errors import InputError
from dataset_loader.processes import POLL, Crew, Failure, Memory, alive

AHEAD = 2  # batches that each process has been told to load: while one is fetched it works on the next

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
        """The samples with these keys: a dict of tensors and plain values.

        `video` [B, F, 3, H, W] lies in the memory that `allocate([B, F, H, W, 3])` gives.
        excluded: names of files, and why they are not to be opened. trying(row, attempt) is called before each file.
        """
        ...

    def name_tried(self, key: Key, attempt: int) -> str:
        """The name of the file that an attempt at a sample opens."""
        ...


class Pool:
    """`count` processes that load batches.

    time_limit: seconds that one attempt at one sample may take. max_lost: how many files may hang or kill their process
    before the run ends with an InputError that names them. lost: these files, and the reasons.
    """

    def __init__(self, loads: Loads, count: int, *, time_limit: float, max_lost: int) -> None:
        self._loads = loads
        self._crew = Crew(_Load(loads), count, time_limit=time_limit, ahead=AHEAD)
        self._ahead = AHEAD * count
        self._max_lost = max_lost
        self._first = self._next = 0  # numbers of batches: the first of the running iteration, and the next to be given
        self._done: dict[int, dict[str, Any] | Exception] = {}
        self.lost: dict[str, str] = {}

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
            while not exhausted and self._next - due < self._ahead and self._crew.has_room:
                keys = next(waiting, None)
                if keys is None:
                    exhausted = True
                else:
                    self._crew.give((self._next, keys, self.lost))
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
        """Take what the processes have finished; what was lost with a process is loaded again without its file."""
        for task, result, memory in self._crew.results(timeout):
            number, keys, _ = task
            if isinstance(result, Failure):
                row, attempt = result.note
                self.lost[self._loads.name_tried(keys[row], attempt)] = result.reason
                if len(self.lost) > self._max_lost:
                    said = "; ".join(f"{name} ({why})" for name, why in self.lost.items())
                    raise InputError(f"{len(self.lost)} videos made their decoder hang or die: {said}")
                self._crew.give(task)
            elif number >= self._first:
                shape, batch = result
                if not isinstance(batch, Exception):
                    batch = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
                    copied = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory).copy_(_tensor(memory, shape))
                    batch["video"] = copied.permute(0, 1, 4, 2, 3)
                self._done[number] = batch


@dataclass(frozen=True)
class _Load:
    """What a process calls: a task → (shape of the frames in its memory, the rest of the batch or an exception)."""

    loads: Loads

    def __call__(self, task: tuple[int, Sequence[Key], dict[str, str]], memory: Memory) -> tuple[Any, Any]:
        torch.set_num_threads(1)
        _, keys, excluded = task
        try:
            batch = self.loads.load_batch(
                keys, excluded=excluded, trying=alive, allocate=lambda shape: _tensor(memory, shape)
            )
        except InputError as error:
            return None, InputError(str(error))
        except Exception:
            return None, RuntimeError(f"in a process that loads data:\n{traceback.format_exc()}")
        shape = tuple(batch.pop("video").permute(0, 1, 3, 4, 2).shape)  # as it lies in memory
        # As arrays: a tensor would be sent by way of a file of its own.
        return shape, {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _tensor(memory: Memory, shape: Sequence[int]) -> torch.Tensor:
    """A uint8 tensor at the beginning of a memory."""
    size = math.prod(shape)
    return torch.frombuffer(memory.view(size), dtype=torch.uint8, count=size).view(tuple(shape))
