"""The thread that takes batches out of shared memory: order, errors, Ctrl-C, epochs ahead, and memory used again."""

import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import background, get_kinetics_dataset, make_loader
from dataset_loader.background import Background, Buffers
from dataset_loader.processes import Memory, Slot
from dataset_loader.workers import AHEAD, READY, Pool


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_thread_is_ahead_and_not_further():
    asked, threads = [], set()

    def items(stopped):
        for number in range(6):
            asked.append(number)
            threads.add(threading.get_ident())
            yield number

    with closing(Background(items, 2)) as taken:
        until(lambda: len(asked) == 2)
        for number, item in enumerate(taken):
            assert item == number and len(asked) <= number + 3
            until(lambda number=number: len(asked) >= min(6, number + 3))
    assert number == 5 and threading.get_ident() not in threads


@pytest.mark.parametrize("error", [InputError("a bad file"), KeyboardInterrupt(), MemoryError()])
def test_an_error_arrives_where_the_items_are_taken(error):
    def items(stopped):
        yield 1
        raise error

    taken = Background(items, 2)
    assert next(taken) == 1
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            next(taken)
        assert caught.value is error
    taken.close()
    assert not taken._thread.is_alive()


def test_ctrl_c_ends_the_waiting_and_the_thread():
    def items(stopped):
        stopped.wait()
        yield from ()

    taken = Background(items, 2)
    threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), closing(taken):
        next(taken)
    assert not taken._thread.is_alive()
    with pytest.raises(RuntimeError, match="another iteration"):
        next(taken)


def test_it_ends_while_there_is_no_room():
    taken = Background(lambda stopped: iter(range(100)), 1)
    until(lambda: not taken._ready.empty())
    taken.close()
    assert not taken._thread.is_alive()


def address(array):
    return array.__array_interface__["data"][0]


def test_a_slot_is_used_again_when_nobody_holds_its_batch():
    buffers = Buffers(5, pinned=False)
    first = buffers.take(77)
    places, block = {address(first)}, buffers._block
    assert len(block) == 512  # one power of two, filled with slots: 6 of 77 bytes
    view = torch.from_numpy(first).view(7, 11)[3:]
    del first
    held = [buffers.take(70 + k) for k in range(5)]
    places |= set(map(address, held))
    assert len(places) == 6 and all(address(block) <= place < address(block) + 512 for place in places)
    other = buffers.take(77)  # all slots are held: memory of its own
    assert address(other) not in places
    del other
    view.fill_(9)
    held[2].fill(1)
    assert (view == 9).all()
    place = address(held.pop(2))
    assert address(buffers.take(50)) == place
    del view
    assert {address(buffers.take(50)) for _ in range(2)} <= places
    larger = buffers.take(78)  # a new block; what lies in the old one stays
    assert len(buffers._block) == 512 and buffers._block is not block and address(larger) not in places


def test_a_copy_that_is_on_its_way_is_waited_for(monkeypatch):
    said = []

    class Event:
        def record(self):
            said.append("recorded")

        def synchronize(self):
            said.append("waited")

    monkeypatch.setattr(background.torch.cuda, "Event", Event)
    monkeypatch.setattr(Buffers, "_allocate", lambda self, size: np.empty(size, np.uint8))
    buffers = Buffers(1, pinned=True)
    for _ in range(3):
        buffers.take(64)
    assert said == ["recorded", "waited", "recorded", "waited", "recorded"]


class Crew:
    """In place of processes: of the tasks that it has, the last is done first. It says nothing where it has none."""

    def __init__(self, size=2):
        self.tasks, self.given, self.unused = [], [], list(range(AHEAD * size))
        self.memories = [Memory() for _ in self.unused]

    @property
    def has_room(self):
        return bool(self.unused)

    def give(self, task):
        self.tasks.append((task, self.unused.pop()))
        self.given.append(task[1])

    def results(self, timeout):
        if not self.tasks:
            time.sleep(0.001)
            return
        task, number = self.tasks.pop()
        memory = self.memories[number]
        memory.view(12)[:] = bytes([task[1][0][1]] * 12)
        yield task, ((1, 2, 1, 2, 3), {"seed": np.array([task[1][0][0]]), "bad": []}), Slot(memory, number, self.unused)


def pool():
    made = Pool(None, 2, time_limit=1, max_lost=0)
    made._crew = Crew()
    return made


def tasks(epoch, count):
    return [[(epoch, index)] for index in range(count)]


def contents(batches):
    return [(int(batch["seed"]), set(batch["video"].flatten().tolist())) for batch in batches]


def expected(epoch, count):
    return [(epoch, {index}) for index in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_the_next_epoch_is_begun_before_it_is_asked_for(count):
    """And nothing is loaded twice, where it is what was expected; else that is thrown away."""
    pooled = pool()
    for epoch in (1, 2, 3):
        assert contents(pooled.batches(tasks(epoch, count), iter(tasks(epoch + 1, count)))) == expected(epoch, count)
        given = [keys[0] for keys in pooled._crew.given]
        assert given[: epoch * count] == [(e, k) for e in range(1, epoch + 1) for k in range(count)]
        assert given[epoch * count :] == [(epoch + 1, k) for k in range(len(given) - epoch * count)]
        assert 1 <= len(given) - epoch * count <= AHEAD * 2
    assert contents(pooled.batches(tasks(9, count))) == expected(9, count)
    assert contents(pooled.batches(tasks(9, count)[1:])) == expected(9, count)[1:]  # a resume
    assert len(pooled._crew.unused) == AHEAD * 2 and not pooled._done


def test_an_iteration_that_is_left_frees_everything():
    pooled = pool()
    batches = pooled.batches(tasks(1, 20), tasks(2, 20))
    first = [next(batches), next(batches)]
    assert contents(pooled.batches(tasks(1, 5))) == expected(1, 5) and contents(first) == expected(1, 2)
    with pytest.raises(RuntimeError, match="another iteration"):
        next(batches)
    assert len(pooled._crew.unused) == AHEAD * 2


def test_the_training_thread_copies_nothing(monkeypatch):
    """And what it takes is there: `READY` batches are copied before the first is asked for."""
    copying, copy = [], np.copyto
    monkeypatch.setattr(np, "copyto", lambda *given: (copying.append(threading.get_ident()), copy(*given)))
    batches = pool().batches(tasks(1, 9))
    until(lambda: len(copying) == READY)
    assert contents(batches) == expected(1, 9)
    assert len(copying) == 9 and threading.get_ident() not in copying


def test_epochs_are_bit_equal_with_and_without_processes(videos):
    """In order, repeated, out of order and resumed: whatever was loaded ahead."""
    dataset = get_kinetics_dataset(videos, image_size=16, repeated_sampling=2)
    here, there = make_loader(dataset, 2), make_loader(dataset, 2, workers=2)
    for epoch, start in ((1, 0), (2, 0), (2, 0), (7, 2), (8, 0)):
        here.set_epoch(epoch, start)
        there.set_epoch(epoch, start)
        pairs = list(zip(here, there, strict=True))
        assert len(pairs) == 6 - start
        for one, other in pairs:
            assert torch.equal(one["video"], other["video"]) and torch.equal(one["seed"], other["seed"])
            assert one["path"] == other["path"]
