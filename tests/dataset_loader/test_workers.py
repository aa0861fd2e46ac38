"""Nothing that a file does to its decoder hangs or ends an epoch: the process is replaced, the file is named."""

import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from common.errors import InputError
from dataset_loader import PairDataset, RandomTemporalSubsample, get_kinetics_dataset, make_loader

TRAPS = """
    import os, signal, time
    from dataset_loader.sources import VideoFiles

    class Traps(VideoFiles):
        def open(self, number):
            name = self.names[number]
            if "sleeps" in name:
                time.sleep(1e6)
            if "dies" in name:
                os.kill(os.getpid(), signal.SIGSEGV)
            if "exits" in name:
                os._exit(3)
            if "raises" in name:
                raise ZeroDivisionError("a bug")
            if "slow" in name:
                time.sleep(0.4)
            return super().open(number)
"""


@pytest.fixture
def traps(tmp_path, monkeypatch, videos):
    """A dataset of the six small videos and others that are traps for whoever opens them."""
    (tmp_path / "traps_of_a_test.py").write_text(textwrap.dedent(TRAPS))
    monkeypatch.syspath_prepend(tmp_path)

    def make(*names, **settings):
        from traps_of_a_test import Traps

        paths = sorted(map(str, videos.iterdir()))
        for name in names:
            paths.append(str(shutil.copy(videos / "b_30.mp4", tmp_path / f"{name}.mp4")))
        return PairDataset(Traps(paths), RandomTemporalSubsample(), image_size=16, visits=2, **settings)

    yield make
    sys.modules.pop("traps_of_a_test", None)


def processes() -> set[int]:
    """The ids of the processes that loaders have started and not yet ended."""
    return {process.pid for process in multiprocessing.active_children()}


def names(loader) -> set[str]:
    return {Path(path).stem for path in loader.bad_files}


def test_a_decoder_that_hangs_or_dies_is_replaced(traps):
    dataset = traps("sleeps", "dies", "exits")
    loader = make_loader(dataset, 3, workers=2, time_limit=1)
    begin = time.monotonic()
    batches = list(loader)
    assert time.monotonic() - begin < 40
    assert [len(batch["video"]) for batch in batches] == [3] * 6
    assert names(loader) == {"sleeps", "dies", "exits"}
    reasons = {Path(path).stem: reason for path, reason in loader.bad_files.items()}
    assert reasons["sleeps"] == "gave nothing for 1 s"
    assert "SIGSEGV" in reasons["dies"]
    assert "ended with code 3" in reasons["exits"]
    assert not {Path(path).stem for batch in batches for path in batch["path"]} & {"sleeps", "dies", "exits"}

    again = make_loader(dataset, 3, workers=1, time_limit=1)  # what stands in does not depend on who was killed when
    for one, other in zip(batches, again, strict=True):
        assert torch.equal(one["video"], other["video"])
        assert one["path"] == other["path"]
        assert sorted(one["bad"]) == sorted(other["bad"])

    loader.set_epoch(1)  # known ones cost no second process
    before = processes()
    assert len(list(loader)) == 6
    assert processes() == before


def test_what_stands_in_is_the_same_as_for_a_file_that_cannot_be_read(traps, tmp_path):
    killed = list(make_loader(traps("dies"), 7, workers=1, shuffle=False))
    (tmp_path / "dies.mp4").write_text("not a video")
    paths = [*traps().paths, str(tmp_path / "dies.mp4")]
    unreadable = PairDataset(paths, RandomTemporalSubsample(), image_size=16, visits=2)
    for one, other in zip(killed, make_loader(unreadable, 7, shuffle=False), strict=True):
        assert one["path"] == other["path"]
        assert torch.equal(one["video"], other["video"])
        assert [path for path, _ in one["bad"]] == [path for path, _ in other["bad"]]


def test_too_many_of_them_end_the_run_with_their_names(traps):
    loader = make_loader(traps("dies1", "dies2", "exits1"), 3, workers=1, max_lost=2)
    with pytest.raises(InputError, match="3 videos made their decoder hang or die") as caught:
        list(loader)
    for name in ("dies1", "dies2", "exits1"):
        assert name in str(caught.value)


def test_a_slow_file_is_not_a_hung_one(traps):
    """The limit is for one attempt at one file, not for a batch, and not for the time in which nobody asks."""
    loader = make_loader(traps("slow1", "slow2", "slow3"), 9, workers=1, time_limit=0.9)
    for _ in loader:
        time.sleep(1.5)
    assert loader.bad_files == {}


def test_a_process_that_somebody_kills(traps):
    others = processes()
    loader = make_loader(traps("slow"), 2, workers=2)
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == 2:
            os.kill(min(processes() - others), signal.SIGKILL)
    assert len(batches) == 7
    assert all(len(batch["video"]) == 2 for batch in batches)
    assert len(loader.bad_files) <= 1
    assert all("SIGKILL" in reason for reason in loader.bad_files.values())


def test_a_pipe_that_is_called_clip(videos, tmp_path):
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    os.mkfifo(folder / "clip.mp4")
    loader = make_loader(get_kinetics_dataset(folder, image_size=16), 7, workers=1, time_limit=20)
    begin = time.monotonic()
    assert len(list(loader)) == 1
    assert time.monotonic() - begin < 15
    assert names(loader) == {"clip"}


def test_a_bug_is_shown_with_its_traceback(traps):
    with pytest.raises(RuntimeError, match=r"in a process that loads data:(.|\n)*ZeroDivisionError: a bug"):
        list(make_loader(traps("raises"), 7, workers=1))


def test_processes_that_cannot_even_begin(traps, tmp_path):
    dataset = traps()
    (tmp_path / "traps_of_a_test.py").write_text("raise RuntimeError")
    loader = make_loader(dataset, 3, workers=1)
    with pytest.raises(RuntimeError, match="before they have begun"):
        list(loader)


def test_an_iteration_that_was_left_unfinished(videos):
    dataset = get_kinetics_dataset(videos, image_size=16, visits=4)
    loader = make_loader(dataset, 2, workers=2)
    whole = [batch["path"] for batch in loader]
    assert len(whole) == 12
    for count in (0, 1, 5):
        for number, batch in enumerate(loader):
            assert batch["path"] == whole[number]
            if number == count:
                break
    assert [batch["path"] for batch in loader] == whole
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert next(second)["path"] == whole[0]
    with pytest.raises(RuntimeError, match="another iteration"):
        next(first)


def test_batches_stay_what_they_are(videos):
    """The memory that a process writes into is used again; what was handed out is not in it."""
    loader = make_loader(get_kinetics_dataset(videos, image_size=16, visits=6), 2, workers=1)
    kept = list(loader)
    copies = [batch["video"].clone() for batch in kept]
    list(loader)
    assert all(torch.equal(batch["video"], copy) for batch, copy in zip(kept, copies, strict=True))
    assert len({copy.numpy().tobytes() for copy in copies}) == len(copies)


def test_processes_end_with_their_loader(videos):
    others = processes()
    loader = make_loader(get_kinetics_dataset(videos, image_size=16), 2, workers=2)
    list(loader)
    started = [psutil.Process(pid) for pid in processes() - others]
    assert len(started) == 2 and all(process.is_running() for process in started)
    del loader
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_a_quarter_of_a_million_paths_are_two_blocks_of_memory():
    paths = [f"/data/kinetics/train/class_{n % 400}/{n:011d}_000000_000010.mp4" for n in range(240_000)]
    begin = time.monotonic()
    dataset = PairDataset(paths, RandomTemporalSubsample())
    content = pickle.dumps(dataset)
    copy = pickle.loads(content)
    keys = list(make_loader(copy, 64).sampler)
    assert time.monotonic() - begin < 10
    assert len(content) < 25e6
    assert len(keys) == 240_000
    assert [copy.paths[n] for n in (0, 1, 239_999)] == [paths[n] for n in (0, 1, 239_999)]


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_samples(videos):
    """Of one process, its own memory (USS), after the index cache has seen every file."""
    others = processes()
    loader = make_loader(get_kinetics_dataset(videos, image_size=64, visits=1000), 20, workers=1)
    next(iter(loader))
    process = psutil.Process(*(processes() - others))
    uses = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            assert len(batch["video"]) == 20
            if number % 50 == 49:
                uses.append(process.memory_full_info().uss / 2**20)
    print("USS in MiB:", np.round(uses, 1).tolist())
    assert len(uses) == 12
    assert max(uses[2:]) - uses[1] < 5
    assert max(uses) < 100
