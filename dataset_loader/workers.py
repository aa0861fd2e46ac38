"""Processes that load batches: in order, into memory that the loader owns, replaced when they hang or die.

torch's DataLoader waits for ever for a worker that hangs, and ends the run when one dies. Here the batch is loaded
again without the file at fault. A batch depends on its keys and on the files left out alone, so nothing else changes.
"""

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from threading import Event
from typing import Any, Protocol

import numpy as np
import torch

from common.errors import InputError
from dataset_loader.background import Background, Buffers
from dataset_loader.processes import POLL, Crew, Failure, Memory, Slot, alive

AHEAD = 2  # batches that each process has been told to load: while one is fetched it works on the next
READY = 2  # batches that lie copied (and pinned) before they are wanted
IN_USE = 3  # and those that are used: one on its way to the device, one in the step, one whose numbers are not read yet

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
    """`count` processes that load batches, and a thread that copies these out of their memory before they are wanted.

    time_limit: seconds that one attempt at one sample may take. max_lost: how many files may hang or kill their process
    before the run ends with an InputError that names them. pin_memory: for copies to a GPU. lost: the files that did,
    and the reasons.
    """

    def __init__(self, loads: Loads, count: int, *, time_limit: float, max_lost: int, pin_memory: bool = False) -> None:
        self._loads = loads
        self._crew = Crew(_Load(loads), count, time_limit=time_limit, ahead=AHEAD)
        self._ahead = AHEAD * count
        self._max_lost = max_lost
        self._buffers = Buffers(READY + IN_USE, pinned=True) if pin_memory else None
        self._first = self._next = 0  # numbers of batches: the first of the running iteration, and the next to be given
        self._early: list[Sequence[Key]] = []  # the last ones that were given, for the iteration that follows
        self._done: dict[int, tuple[Slot, Any]] = {}
        self._running: Background[dict[str, Any]] | None = None
        self.lost: dict[str, str] = {}

    def batches(
        self, tasks: Sequence[Sequence[Key]], following: Iterable[Sequence[Key]] = ()
    ) -> Background[dict[str, Any]]:
        """The batches of these lists of keys, in their order. It ends an earlier iteration that was left unfinished.

        following: what will probably be asked for next; it is begun when all of `tasks` has been, so that the processes
        never wait for an epoch to end.
        """
        if self._running is not None:
            self._running.close()
        self._running = Background(lambda stopped: self._load(tasks, following, stopped), READY)
        return self._running

    def _load(
        self, tasks: Sequence[Sequence[Key]], following: Iterable[Sequence[Key]], stopped: Event
    ) -> Iterator[dict[str, Any]]:
        begun = len(self._early) if self._early == list(tasks[: len(self._early)]) else 0
        due = self._first = self._next - begun
        end = due + len(tasks)
        self._early = []
        for number in [number for number in self._done if number < due]:
            self._done.pop(number)[0].free()
        waiting, patience = chain(tasks[begun:], following), 0.0
        while due < end and not stopped.is_set():
            self._receive(patience)
            patience, batch = POLL, None
            if due in self._done:
                batch = self._take(*self._done.pop(due))
                due += 1
            while self._next - due < self._ahead and self._crew.has_room and (keys := next(waiting, None)) is not None:
                if self._next >= end:
                    self._early.append(keys)
                self._crew.give((self._next, keys, self.lost))
                self._next += 1
            if batch is not None:
                patience = 0.0
                yield batch

    def _receive(self, timeout: float) -> None:
        """Hear of what the processes have finished; what was lost with one is loaded again without its file."""
        for task, result, slot in self._crew.results(timeout):
            number, keys, _ = task
            if number >= self._first and not isinstance(result, Failure):
                self._done[number] = slot, result
                continue
            slot.free()
            if isinstance(result, Failure):
                row, attempt = result.note
                self.lost[self._loads.name_tried(keys[row], attempt)] = result.reason
                if len(self.lost) > self._max_lost:
                    said = "; ".join(f"{name} ({why})" for name, why in self.lost.items())
                    raise InputError(f"{len(self.lost)} videos made their decoder hang or die: {said}")
                self._crew.give(task)

    def _take(self, slot: Slot, result: tuple[Any, Any]) -> dict[str, Any]:
        """A batch in memory of its own; its slot is free again."""
        shape, batch = result
        if isinstance(batch, Exception):
            slot.free()
            raise batch
        size = math.prod(shape)
        video = self._buffers.take(size) if self._buffers else np.empty(size, np.uint8)
        np.copyto(video, np.frombuffer(slot.memory.view(size), np.uint8, size))  # lets the training thread run
        slot.free()
        batch = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
        return batch | {"video": torch.from_numpy(video).view(shape).permute(0, 1, 4, 2, 3)}


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
