"""Pairs of frames, or clips, from a folder of videos, and batches of them.

Every random choice of a sample comes from a generator made of (seed, epoch, index), so a sample is the same whatever
the number of workers and of ranks, and after a resume. A file that cannot be decoded is replaced by another, reported
and counted; with workers also one that makes its decoder hang or die.

Legend: R samples drawn from one video, B samples in a batch, F frames of a sample (2 for a pair), S side of a frame in
pixels, V videos.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from common.errors import InputError
from common.schedule import Phase, Schedule
from dataset_loader.decoding import DecodeError
from dataset_loader.pairings import Pairing, boxes, parse_pairing
from dataset_loader.random_temporal_subsample import RandomClip, RandomTemporalSubsample, TemporalSampler
from dataset_loader.sources import PictureFiles, Source, VideoFiles, WithPictures, open_source
from dataset_loader.transforms import Augmentation, View, apply_view, apply_views, centre_view, draw_colours, padded
from dataset_loader.workers import Key, Pool
from mae.patches import denormalize

# How many files a sample may try. With half of the files bad, one sample in a million runs out of them.
TRIES = 20

log = logging.getLogger(__name__)


class PairDataset(Dataset):
    """Pairs of a past and a future frame, R of them from a video at a time. See `get_kinetics_dataset`.

    source: where the videos come from; a list is one of video files. temporal: draws the frames of a sample: of a pair,
    of a past with several futures, of a clip. crop_later: leave the frames whole, and say in `view` how they are to be
    cropped (see `make_loader`). pairing: what makes a pair (`pairings`); schedule: a curriculum in its place
    (`common.schedule`). grid: patches along a side of the image, by which some pairings shift.
    """

    def __init__(
        self,
        source: Source | Sequence[str],
        temporal: TemporalSampler,
        *,
        image_size: int = 224,
        augment: bool | Augmentation = True,
        seed: int = 0,
        visits: int = 1,
        crop_later: bool = False,
        pairing: str = "video",
        schedule: str = "",
        grid: int = 14,
    ) -> None:
        if image_size < 1 or visits < 1 or seed < 0:
            raise InputError(
                f"image_size {image_size} and visits {visits} must be at least 1, and seed {seed} at least 0"
            )
        self.source: Source = VideoFiles(source) if isinstance(source, Sequence) else source
        self.temporal = temporal
        self.image_size = image_size
        self.augmentation = Augmentation() if augment is True else augment
        self.seed = seed
        self.visits = visits
        self.crop_later = crop_later
        self.schedule = Schedule.parse(schedule) if schedule else Schedule((Phase(0, pairing),))
        self.grid = grid
        self._mixes = {phase.pairing: parse_pairing(phase.pairing) for phase in self.schedule.phases}
        if set(self._mixes) != {"video"} and (not augment or temporal.frames < 2):
            raise InputError(f"the pairing {', '.join(self._mixes)} draws its crops; without augmentation it is video")
        for text, mix in self._mixes.items():
            if getattr(self.source, "stills", 0) and not any(p.one_frame for p in mix.pairings):
                raise InputError(
                    f"{self.source}: the pairing {text} takes two frames, and a picture is one; give crops, shifted, "
                    "or a mix with one of these"
                )

    @property
    def paths(self) -> Sequence[str]:
        """The names of the videos [V]."""
        return self.source.names

    def __len__(self) -> int:
        return len(self.paths) * self.visits

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """A sample by its index (of epoch 0) or by (epoch, index).

        Returns `video` uint8 [R, F, 3, S, S] in RGB, `time` float64 [R, F] in seconds, `box` int64 [R, F, 5] (the
        crops, see `pairings.boxes`), `path`, `seed` int64 [R] (a random number for each, from which its mask may be
        drawn), and `bad`, a list of (path, reason) of the files that could not be decoded and were replaced. Raises
        InputError if no file out of many could be decoded.
        With `crop_later` `video` is uint8 [R, F, 3, H, W] and `view` float64 [R, F, 12] says how to crop it.
        """
        return self.load(key if isinstance(key, tuple) else (0, key))

    def load(
        self, key: Key, *, excluded: dict[str, str] | None = None, trying: Callable[[int], None] = lambda attempt: None
    ) -> dict[str, Any]:
        """The sample (epoch, index), without opening what is `excluded` (path: reason); see `__getitem__`.

        trying: is called with the number of each attempt before its file is opened.
        """
        if not 0 <= key[1] < len(self):
            raise IndexError(f"sample {key[1]} of {len(self)}")
        bad: dict[str, str] = {}
        for attempt in range(TRIES):
            number, generator = self._attempt(key, attempt)
            path = self.paths[number]
            if excluded and path in excluded:
                bad[path] = excluded[path]
            if path in bad:
                continue
            trying(attempt)
            try:
                sample = self._draw(number, generator, key[0])
            except DecodeError as error:
                bad[path] = error.reason
                continue
            seed = torch.from_numpy(generator.integers(2**63 - 1, size=len(sample["video"])))
            return {**sample, "path": path, "seed": seed, "bad": list(bad.items())}
        raise InputError(f"no video could be decoded in {TRIES} tries: {_listed(bad)}")

    def load_batch(
        self,
        keys: Sequence[Key],
        *,
        excluded: dict[str, str] | None = None,
        trying: Callable[[int, int], None] = lambda row, attempt: None,
        allocate: Callable[[Sequence[int]], torch.Tensor] = lambda shape: torch.empty(tuple(shape), dtype=torch.uint8),
    ) -> dict[str, Any]:
        """The batch of these samples as `collate` makes it, but with numpy arrays in place of all tensors but `video`.

        `trying` is called with the sample's row as well; `allocate` gives the memory for `video`.
        """
        samples = [
            self.load(key, excluded=excluded, trying=lambda attempt, row=row: trying(row, attempt))  # type: ignore[misc]
            for row, key in enumerate(keys)
        ]
        batch = collate(samples, allocate)
        return {
            name: value.numpy() if isinstance(value, torch.Tensor) and name != "video" else value
            for name, value in batch.items()
        }

    def name_tried(self, key: Key, attempt: int) -> str:
        """The path of the file that an attempt at a sample opens."""
        return self.paths[self._attempt(key, attempt)[0]]

    def _attempt(self, key: Key, attempt: int) -> tuple[int, np.random.Generator]:
        """Which video an attempt at a sample opens, and the generator of its random choices.

        Neither depends on how earlier attempts failed: an error and a killed process lead to the same sample.
        """
        epoch, index = key
        if attempt == 0:
            return index % len(self.paths), np.random.default_rng([self.seed, epoch, index])
        generator = np.random.default_rng([self.seed, epoch, index, attempt, 2])
        return int(generator.integers(len(self.paths))), generator

    def _draw(self, number: int, generator: np.random.Generator, epoch: int) -> dict[str, torch.Tensor]:
        mix = self._mixes[self.schedule.pairing(epoch)]
        with self.source.open(number) as clip:
            try:  # each of these says what the clip lacks: another stands in for it
                pairings = [mix.pick(generator, len(clip.times) < 2) for _ in range(self.temporal.repeated_sampling)]
                numbers = self._numbers(clip.times, generator)
            except InputError as error:
                raise DecodeError(clip.path, str(error)) from error
            for row, pairing in zip(numbers, pairings, strict=True):
                row[:] = row[0] if pairing.one_frame else row
            frames, times = clip.frames(numbers.ravel())
        times = times.reshape(numbers.shape)
        if any(len(set(t)) < len(set(n)) for t, n in zip(times.tolist(), numbers.tolist(), strict=True)):
            raise DecodeError(clip.path, "is damaged: of two frames that were drawn one stood in for both")
        samples = frames.reshape(*numbers.shape, *frames.shape[1:])  # [R, F, H, W, 3]
        height, width = frames.shape[1:3]
        views = [self._views(pairing, height, width, numbers.shape[1], generator) for pairing in pairings]
        drawn = {
            "time": torch.from_numpy(times),
            "box": torch.stack([boxes([view.crop for view in row]) for row in views]),
        }
        if self.crop_later:
            view = torch.stack([torch.stack([view.as_tensor(height, width) for view in row]) for row in views])
            return {"video": torch.from_numpy(samples).permute(0, 1, 4, 2, 3), "view": view, **drawn}
        cropped = [_cropped(sample, row, self.image_size) for sample, row in zip(samples, views, strict=True)]
        joined = torch.stack(cropped) if len(cropped) > 1 else cropped[0][None]  # a copy less
        return {"video": joined.permute(0, 1, 4, 2, 3), **drawn}

    def _numbers(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, F], numbers of frames; of a single picture all are 0."""
        if len(times) > 1:
            return self.temporal.draw(times, generator)
        return np.zeros((self.temporal.repeated_sampling, self.temporal.frames), dtype=np.int64)

    def _views(
        self, pairing: Pairing, height: int, width: int, frames: int, generator: np.random.Generator
    ) -> list[View]:
        """How each frame of a sample is to be seen: crops of its own, everything else in common."""
        if not self.augmentation:
            return [centre_view(height, width)] * frames
        crops = pairing.draw(height, width, frames, generator, self.augmentation, self.grid)
        view = draw_colours(crops[0], generator, self.augmentation)
        return [replace(view, crop=crop) for crop in crops]


def _cropped(frames: np.ndarray, views: list[View], size: int) -> torch.Tensor:
    """uint8 [F, size, size, 3], by one call where all frames have the same view."""
    if all(view == views[0] for view in views):
        return apply_view(frames, views[0], size).permute(0, 2, 3, 1)
    shown = [apply_view(frames[f : f + 1], view, size) for f, view in enumerate(views)]
    return torch.cat([frame.permute(0, 2, 3, 1) for frame in shown])


def get_kinetics_dataset(
    dataset_dir: str | Path | Iterable[str | Path],
    *,
    image_size: int = 224,
    min_gap: float = 4,
    max_gap: float = 48,
    repeated_sampling: int = 1,
    augment: bool | Augmentation = True,
    rotation: float = 0.0,
    seed: int = 0,
    visits: int = 1,
    futures: int = 1,
    clip_frames: int | None = None,
    stride: float = 4,
    unit: Literal["frames", "seconds"] = "frames",
    fps: float = 30,
    pairing: str = "video",
    schedule: str = "",
    patch_size: int = 16,
    photos: str | Path | Iterable[str | Path] | None = None,
) -> PairDataset:
    """A dataset of frame pairs over all videos below a folder, or over a list of files and folders.

    A folder may hold video files, packed shards, folders of numbered pictures or a ledger of such (`open_source`);
    which it is, is printed. image_size: side of the square frames in pixels. min_gap, max_gap: the pair's distance,
    both included, in frames of 30 fps whatever the video's own rate, or in seconds, by `unit`. repeated_sampling: fresh
    samples from each visit to a video. augment: one random crop and flip, or what an `Augmentation` says, for all
    frames of a sample; else the central square. rotation: turns the frames as well, by up to so many degrees. visits:
    how often an epoch visits each video. futures: K frames after the past, each at a gap of its own: samples of 1 + K
    frames. clip_frames: in place of pairs, clips of so many frames, `stride` apart (in `unit` as well). fps: the rate
    of pictures that have no times beside them. pairing, schedule: what makes a pair, always or by the epoch
    (`pairings`, `common.schedule`); patch_size: the model's, for pairings that shift by whole patches.
    photos: single pictures beside the videos, files or folders of them, of which one-frame pairings make pairs.
    """
    if clip_frames is not None and (pairing != "video" or schedule):
        raise InputError(f"pairing {schedule or pairing!r} makes pairs; clips of {clip_frames} frames have none")
    temporal: TemporalSampler
    if clip_frames is None:
        temporal = RandomTemporalSubsample(
            min_gap, max_gap, repeated_sampling=repeated_sampling, futures=futures, unit=unit
        )
    else:
        temporal = RandomClip(clip_frames, stride, repeated_sampling=repeated_sampling, unit=unit)
    if augment and rotation:
        augment = replace(Augmentation() if augment is True else augment, rotation=rotation)
    source = open_source(dataset_dir, fps=fps)
    if photos is not None:
        source = WithPictures(source, PictureFiles(photos))
    if isinstance(dataset_dir, str | Path):
        print(f"{dataset_dir}: {source}")
    return PairDataset(
        source, temporal, image_size=image_size, augment=augment, seed=seed, visits=visits,
        pairing=pairing, schedule=schedule, grid=max(1, image_size // patch_size),
    )  # fmt: skip


def collate(
    samples: list[dict[str, Any]],
    allocate: Callable[[Sequence[int]], torch.Tensor] = lambda shape: torch.empty(tuple(shape), dtype=torch.uint8),
) -> dict[str, Any]:
    """Samples of R each → one batch: `video` [B, F, 3, S, S], `time` [B, F], `box` [B, F, 5], `path` (B), `seed` [B],
    `bad`.

    Frames that were left whole are padded at the right and the bottom to the largest, and `view` [B, F, 12] comes
    along.
    allocate: gives the memory for `video`.
    """
    batch = {
        "video": padded([sample["video"] for sample in samples], allocate),
        "time": torch.cat([sample["time"] for sample in samples]),
        "path": [sample["path"] for sample in samples for _ in sample["video"]],
        "seed": torch.cat([sample["seed"] for sample in samples]),
        "bad": [entry for sample in samples for entry in sample["bad"]],
    }
    for name in ("box", "view"):
        if name in samples[0]:
            batch[name] = torch.cat([sample[name] for sample in samples])
    return batch


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
        order = np.arange(self.length)
        if self.shuffle:
            # The fourth number keeps the order's stream apart from those of the samples, [seed, epoch, index].
            order = np.random.default_rng([self.seed, self.epoch, 0, 1]).permutation(self.length)
        mine = order[self.rank :: self.world_size][self.start :]
        return iter([(self.epoch, index) for index in mine.tolist()])

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch; start: how many samples of this rank to leave out at its beginning."""
        self.epoch = epoch
        self.start = start


class PairLoader:
    """Batches of a PairDataset, epoch by epoch. `bad_files` grows by (path: reason) as files turn out to be bad.

    batch_size: samples in a batch of this rank. See `make_loader`.
    """

    def __init__(
        self,
        dataset: PairDataset,
        sampler: EpochSampler,
        batch_size: int,
        *,
        drop_last: bool = True,
        pin_memory: bool = False,
        pool: Pool | None = None,
        crop_device: torch.device | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.bad_files: dict[str, str] = {}
        self._visits = batch_size // dataset.temporal.repeated_sampling  # to videos, in a batch
        self._drop_last = drop_last
        self._pin_memory = pin_memory
        self._pool = pool
        self._crop_device = crop_device

    def __len__(self) -> int:
        """Batches in a whole epoch, for every rank the same if the last, ragged one is dropped."""
        if self._drop_last:
            return self.sampler.length // self.sampler.world_size // self._visits
        return -(-len(self.sampler) // self._visits)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that the next iteration goes through; without it, the same one again.

        start_batch: begin with this batch, as if those before had been read; nothing of them is.
        """
        if not 0 <= start_batch <= len(self):
            raise InputError(f"start_batch is {start_batch}; an epoch has {len(self)} batches")
        self.sampler.set_epoch(epoch, start_batch * self._visits)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches():
            self._report(batch["bad"])
            yield self._finished(batch)
        if len(self.bad_files) > len(self.dataset.paths) / 2:
            raise InputError(
                f"{len(self.bad_files)} of {len(self.dataset.paths)} videos could not be decoded: "
                f"{_listed(self.bad_files)}"
            )

    def _batches(self) -> Iterator[dict[str, Any]]:
        if self._pool is not None:
            return self._pool.batches(self._keys(), pin_memory=self._pin_memory)
        return map(self.dataset.load_batch, self._keys())

    def _keys(self) -> Iterator[list[Key]]:
        keys = list(self.sampler)
        if self._drop_last:
            del keys[len(self) * self._visits - self.sampler.start :]
        return (keys[begin : begin + self._visits] for begin in range(0, len(keys), self._visits))

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()
        }
        if self._pin_memory and not batch["video"].is_pinned():
            batch["video"] = batch["video"].pin_memory()
        if self._crop_device is not None:
            video = batch["video"].to(self._crop_device, non_blocking=True)
            batch["video"] = apply_views(video, batch.pop("view"), self.dataset.image_size)
        return batch

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
    rank: int = 0,
    world_size: int = 1,
    crop_device: torch.device | str | None = None,
    time_limit: float = 60,
    max_lost: int = 10,
) -> PairLoader:
    """Batches of `batch_size` samples (a multiple of the dataset's R), shuffled anew in every epoch.

    workers: processes that decode; 0 decodes in this one, where a decoder that hangs or crashes takes everything with
    it. Order and samples are the same for any number of them. drop_last: leave out what does not fill a batch.
    pin_memory: for copies to a GPU that overlap with its work. rank, world_size: take one of several disjoint shares of
    each epoch; batch_size is that of a rank. crop_device: crop, resize and augment there, a batch at a time, which
    spares the workers a third of their work; meant for frames that were made small in preparation, since they travel
    whole. `video` is then on that device. time_limit: seconds for one file, after which its process is replaced, and
    the file by another. max_lost: how many files may make their decoder hang or die before the run ends.
    """
    repeated = dataset.temporal.repeated_sampling
    if batch_size < 1 or batch_size % repeated:
        raise InputError(f"batch_size {batch_size} must be a multiple of repeated_sampling {repeated}")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 (decode in this process) or more")
    if time_limit <= 0 or max_lost < 0:
        raise InputError(f"time_limit {time_limit} must be above 0, and max_lost {max_lost} at least 0")
    sampler = EpochSampler(len(dataset), seed=dataset.seed, shuffle=shuffle, rank=rank, world_size=world_size)
    if drop_last and len(dataset) // world_size * repeated < batch_size:
        whose = f" for each of {world_size} ranks" if world_size > 1 else ""
        raise InputError(
            f"{len(dataset.paths)} videos give {len(dataset) // world_size * repeated} pairs an epoch{whose}, fewer "
            f"than one batch of {batch_size}; lower the batch size, raise visits, or set drop_last to False"
        )
    if (crop_device is not None) != dataset.crop_later:
        dataset = copy.copy(dataset)
        dataset.crop_later = crop_device is not None
    return PairLoader(
        dataset,
        sampler,
        batch_size,
        drop_last=drop_last,
        pin_memory=pin_memory,
        pool=Pool(dataset, workers, time_limit=time_limit, max_lost=max_lost) if workers else None,
        crop_device=None if crop_device is None else torch.device(crop_device),
    )


def unnormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo ImageNet's normalisation: floats [..., 3, H, W] → the same shape, pixels in [0, 1]."""
    return denormalize(images)


def unnormalize_for_plot(images: torch.Tensor) -> np.ndarray:
    """Normalised floats [..., 3, H, W] → uint8 [..., H, W, 3] for a figure, clipped where a prediction overshoots."""
    pixels = unnormalize(images.detach().float().cpu()).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).movedim(-3, -1).numpy()


def _listed(bad: dict[str, str]) -> str:
    """The first few bad files with their reasons, in one line."""
    shown = [f"{path} ({reason})" for path, reason in list(bad.items())[:5]]
    return "; ".join(shown) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
