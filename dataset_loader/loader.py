"""Batches of a data set, epoch by epoch, the same for any number of workers and of ranks, and after a resume.

Legend: R samples drawn from one video, B samples in a batch, F frames of a sample, S side of a frame in pixels.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from common.errors import InputError
from dataset_loader.dataset import PairDataset, listed
from dataset_loader.workers import Key, Pool

log = logging.getLogger(__name__)


class EpochSampler(Sampler):
    """Yields (epoch, index) for the samples of an epoch, in an order that is a function of (seed, epoch) alone.

    Of `world_size` ranks each takes every world_size-th of that order, from its `rank` on: together they have every
    sample once, and n samples of each are the first n · world_size of the epoch, however many ranks share them.
    """

    def __init__(self, length: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} of world_size {world_size}: ranks are numbered from 0 to world_size - 1")
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        return len(range(self.rank, self.length, self.world_size))

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys(self.epoch, self.start))

    def keys(self, epoch: int, start: int = 0) -> list[Key]:
        """(epoch, index) of the samples of an epoch, from number `start` of this rank on."""
        order = np.arange(self.length)
        if self.shuffle:
            # The fourth number keeps the order's stream apart from those of the samples, [seed, epoch, index].
            order = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(self.length)
        return [(epoch, index) for index in order[self.rank :: self.world_size][start:].tolist()]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch; start: how many samples of this rank to leave out at its beginning."""
        self.epoch = epoch
        self.start = start


class PairLoader:
    """Batches of `batch_size` samples (a multiple of the dataset's R), epoch by epoch, reshuffled in each.

    A batch is a dict: `video` uint8 [B, F, 3, S, S], `time` [B, F], `box` [B, F, 5], `seed` [B], and lists: `path` (B),
    `bad` of (path, reason). `bad_files` grows by (path: reason) as files turn out to be bad.

    workers: processes that decode, some batches ahead, into the next epoch too; a thread copies what they have done. 0
    decodes in this one, where a decoder that hangs or crashes takes everything with it. Order and samples are the same
    for any number of them. drop_last: leave out what does not fill a batch.
    pin_memory: for copies to a GPU that overlap with its work. rank, world_size: take one of several disjoint shares of
    each epoch; batch_size is that of a rank. time_limit: seconds for one file, after which its process is replaced, and
    the file by another. max_lost: how many files may make their decoder hang or die before the run ends.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        *,
        workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        time_limit: float = 60,
        max_lost: int = 10,
    ) -> None:
        repeated = dataset.temporal.repeated_sampling
        if batch_size < 1 or batch_size % repeated:
            raise InputError(f"batch_size {batch_size} must be a multiple of repeated_sampling {repeated}")
        if workers < 0:
            raise InputError(f"workers is {workers}; it must be 0 (decode in this process) or more")
        if time_limit <= 0 or max_lost < 0:
            raise InputError(f"time_limit {time_limit} must be above 0, and max_lost {max_lost} at least 0")
        self.sampler = EpochSampler(len(dataset), seed=dataset.seed, shuffle=shuffle, rank=rank, world_size=world_size)
        if drop_last and len(dataset) // world_size * repeated < batch_size:
            whose = f" for each of {world_size} ranks" if world_size > 1 else ""
            raise InputError(
                f"{len(dataset.paths)} videos give {len(dataset) // world_size * repeated} pairs an epoch{whose}, "
                f"fewer than one batch of {batch_size}; lower the batch size, raise visits, or set drop_last to False"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.bad_files: dict[str, str] = {}
        self._visits = batch_size // repeated  # to videos, in a batch
        self._drop_last = drop_last
        self._pin_memory = pin_memory
        limits: dict[str, Any] = dict(time_limit=time_limit, max_lost=max_lost)
        self._pool = Pool(dataset, workers, **limits, pin_memory=pin_memory) if workers else None

    @property
    def pairs(self) -> int:
        """Pairs, or clips, in a full batch of this rank: each future of a past counts."""
        return self.batch_size * self.dataset.temporal.futures

    @property
    def world_size(self) -> int:
        """How many ranks share an epoch."""
        return self.sampler.world_size

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Plain values by which a resume knows the data again."""
        return self.dataset.fingerprint

    def __len__(self) -> int:
        """Batches in a whole epoch, for every rank the same if the last, ragged one is dropped."""
        if self._drop_last:
            return self.sampler.length // self.sampler.world_size // self._visits
        return -(-len(self.sampler) // self._visits)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration goes through; without it, the same one again.

        start: begin with this batch, as if those before had been read; nothing of them is.
        """
        if not 0 <= start <= len(self):
            raise InputError(f"start is {start}; an epoch has {len(self)} batches")
        self.sampler.set_epoch(epoch, start * self._visits)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with closing(self._batches()) as batches:
            for batch in batches:
                self._report(batch["bad"])
                yield batch
        if len(self.bad_files) > len(self.dataset.paths) / 2:
            raise InputError(
                f"{len(self.bad_files)} of {len(self.dataset.paths)} videos could not be used: {listed(self.bad_files)}"
            )

    def _batches(self) -> Any:
        epoch, start = self.sampler.epoch, self.sampler.start
        if self._pool is None:
            return self._loaded_here(epoch, start)
        following = epoch + self.sampler.shuffle  # a loader that does not shuffle is for always the same samples
        return self._pool.batches(list(self._tasks(epoch, start)), self._tasks(following))

    def _loaded_here(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        for keys in self._tasks(epoch, start):
            batch = self.dataset.load_batch(keys)
            if self._pin_memory:
                batch["video"] = batch["video"].pin_memory()
            yield batch

    def _tasks(self, epoch: int, start: int = 0) -> Iterator[list[Key]]:
        """The keys of each batch of an epoch, from sample `start` of this rank on."""
        keys = self.sampler.keys(epoch, start)
        if self._drop_last:
            del keys[len(self) * self._visits - start :]
        for begin in range(0, len(keys), self._visits):
            yield keys[begin : begin + self._visits]

    def _report(self, bad: list[tuple[str, str]]) -> None:
        for path, reason in bad:
            if path not in self.bad_files:
                self.bad_files[path] = reason
                log.warning("%s: %s; other videos stand in for it", path, reason)


make_loader = PairLoader
