"""Pairs of frames from a folder of videos, and batches of them.

Every random choice of a sample comes from a generator made of (seed, epoch, index), so a sample is the same whatever
the number of workers, and after a resume. A file that cannot be decoded is replaced by another, reported and counted.

Legend: R pairs drawn from one video, B pairs in a batch, S side of a frame in pixels.
"""

import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset_loader.decoding import DecodeError, Video
from dataset_loader.files import find_videos
from dataset_loader.random_temporal_subsample import RandomTemporalSubsample
from dataset_loader.transforms import apply_crop, centre_crop, draw_crop
from mae.files import InputError
from mae.patches import denormalize

# How many files a sample may try. With half of the files bad, one sample in a million runs out of them.
TRIES = 20

log = logging.getLogger(__name__)


class PairDataset(Dataset):
    """Pairs of a past and a future frame, R of them from a video at a time. See `get_kinetics_dataset`."""

    def __init__(
        self,
        paths: list[str],
        temporal: RandomTemporalSubsample,
        *,
        image_size: int = 224,
        augment: bool = True,
        seed: int = 0,
        visits: int = 1,
    ) -> None:
        if image_size < 1 or visits < 1 or seed < 0:
            raise InputError(
                f"image_size {image_size} and visits {visits} must be at least 1, and seed {seed} at least 0"
            )
        self.paths = paths
        self.temporal = temporal
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.visits = visits

    def __len__(self) -> int:
        return len(self.paths) * self.visits

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A sample by its index (of epoch 0) or by (epoch, index).

        Returns `video` uint8 [R, 2, 3, S, S] in RGB, `time` float64 [R, 2] in seconds, `path`, `seed` int64 [R] (a
        random number for each pair, from which its mask may be drawn), and `bad`, a list of (path, reason) of the files
        that could not be decoded and were replaced. Raises InputError if no file out of many could be decoded.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        generator = np.random.default_rng([self.seed, epoch, index])
        path = self.paths[index % len(self.paths)]
        bad: dict[str, str] = {}
        for _ in range(TRIES):
            try:
                video, time = self._pairs(path, generator)
            except DecodeError as error:
                bad[path] = error.reason
                path = self.paths[generator.integers(len(self.paths))]
                continue
            seed = torch.from_numpy(generator.integers(2**63 - 1, size=len(video)))
            return {"video": video, "time": time, "path": path, "seed": seed, "bad": list(bad.items())}
        raise InputError(f"no video could be decoded in {TRIES} tries: {_listed(bad)}")

    def _pairs(self, path: str, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        with Video(path) as video:
            if len(video.index.times) < 2:
                raise DecodeError(path, "has only one frame; a pair needs two")
            numbers = self.temporal.draw(video.index.times, generator)
            frames, times = video.frames(numbers.ravel())
        times = times.reshape(numbers.shape)
        if (times[:, 0] >= times[:, 1]).any():
            raise DecodeError(path, "is damaged: of two frames that were drawn one stood in for both")
        pairs = frames.reshape(*numbers.shape, *frames.shape[1:])  # [R, 2, H, W, 3]
        height, width = frames.shape[1:3]
        crops = [draw_crop(height, width, generator) if self.augment else centre_crop(height, width) for _ in pairs]
        cropped = [apply_crop(pair, crop, self.image_size) for pair, crop in zip(pairs, crops, strict=True)]
        return torch.stack(cropped), torch.from_numpy(times)


def get_kinetics_dataset(
    dataset_dir: str | Path | Iterable[str | Path],
    *,
    image_size: int = 224,
    min_gap: int = 4,
    max_gap: int = 48,
    repeated_sampling: int = 1,
    augment: bool = True,
    seed: int = 0,
    visits: int = 1,
) -> PairDataset:
    """A dataset of frame pairs over all videos below a folder, or over a list of files.

    image_size: side of the square frames in pixels. min_gap, max_gap: the pair's distance, in frames of 30 fps
    whatever the video's own rate, both included. repeated_sampling: fresh pairs from each visit to a video. augment:
    one random crop and flip for each pair; else the central square. visits: how often an epoch visits each video.
    """
    temporal = RandomTemporalSubsample(min_gap, max_gap, repeated_sampling=repeated_sampling)
    return PairDataset(
        find_videos(dataset_dir), temporal, image_size=image_size, augment=augment, seed=seed, visits=visits
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of R pairs each → one batch: `video` [B, 2, 3, S, S], `time` [B, 2], `path` (B), `seed` [B], `bad`."""
    return {
        "video": torch.cat([sample["video"] for sample in samples]),
        "time": torch.cat([sample["time"] for sample in samples]),
        "path": [sample["path"] for sample in samples for _ in sample["video"]],
        "seed": torch.cat([sample["seed"] for sample in samples]),
        "bad": [entry for sample in samples for entry in sample["bad"]],
    }


class EpochSampler(Sampler):
    """Yields (epoch, index) for every sample of an epoch, in an order that is a function of (seed, epoch) alone."""

    def __init__(self, length: int, *, seed: int = 0, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            # The fourth number keeps the order's stream apart from those of the samples, [seed, epoch, index].
            order = np.random.default_rng([self.seed, self.epoch, 0, 1]).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PairLoader:
    """Batches of a PairDataset, epoch by epoch. `bad_files` grows by (path: reason) as files turn out to be bad."""

    def __init__(self, dataset: PairDataset, sampler: EpochSampler, loader: DataLoader) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.loader = loader
        self.batch_size = (loader.batch_size or 1) * dataset.temporal.repeated_sampling  # pairs
        self.bad_files: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through; without it, the same one again."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for batch in self.loader:
                self._report(batch["bad"])
                yield batch
        except InputError as error:  # from a worker it comes wrapped in a traceback: only its sentence matters
            raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None
        if len(self.bad_files) > len(self.dataset.paths) / 2:
            raise InputError(
                f"{len(self.bad_files)} of {len(self.dataset.paths)} videos could not be decoded: "
                f"{_listed(self.bad_files)}"
            )

    def _report(self, bad: list[tuple[str, str]]) -> None:
        for path, reason in bad:
            if path not in self.bad_files:
                self.bad_files[path] = reason
                log.warning("%s: %s; other videos stand in for it", path, reason)


def make_loader(
    dataset: PairDataset,
    batch_size: int,
    *,
    workers: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    pin_memory: bool = False,
) -> PairLoader:
    """Batches of `batch_size` pairs (a multiple of the dataset's R), shuffled anew in every epoch.

    workers: processes that decode; 0 decodes in this one. Order and samples are the same for any number of them.
    drop_last: leave out what does not fill a batch. pin_memory: for copies to a GPU that overlap with its work.
    """
    repeated = dataset.temporal.repeated_sampling
    if batch_size < 1 or batch_size % repeated:
        raise InputError(f"batch_size {batch_size} must be a multiple of repeated_sampling {repeated}")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 (decode in this process) or more")
    if drop_last and len(dataset) * repeated < batch_size:
        raise InputError(
            f"{len(dataset.paths)} videos give {len(dataset) * repeated} pairs an epoch, fewer than one batch of "
            f"{batch_size}; lower the batch size, raise visits, or set drop_last to False"
        )
    sampler = EpochSampler(len(dataset), seed=dataset.seed, shuffle=shuffle)
    loader = DataLoader(
        dataset,
        batch_size=batch_size // repeated,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        multiprocessing_context=_worker_context() if workers > 0 else None,
        generator=torch.Generator(),  # else each epoch would take a number from torch's global one, or not
    )
    return PairLoader(dataset, sampler, loader)


def unnormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo ImageNet's normalisation: floats [..., 3, H, W] → the same shape, pixels in [0, 1]."""
    return denormalize(images)


def unnormalize_for_plot(images: torch.Tensor) -> np.ndarray:
    """Normalised floats [..., 3, H, W] → uint8 [..., H, W, 3] for a figure, clipped where a prediction overshoots."""
    pixels = unnormalize(images.detach().float().cpu()).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).movedim(-3, -1).numpy()


def _worker_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a fresh process that has imported this file: they start at once and inherit no threads.

    A fork of the training process itself may hold a lock of torch's or FFmpeg's threads for ever.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _listed(bad: dict[str, str]) -> str:
    """The first few bad files with their reasons, in one line."""
    shown = [f"{path} ({reason})" for path, reason in list(bad.items())[:5]]
    return "; ".join(shown) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
