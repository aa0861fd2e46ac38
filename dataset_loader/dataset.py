"""Pairs of frames, or clips, from a folder of videos.

Every random choice of a sample comes from a generator made of (seed, epoch, index), so a sample is the same whatever
the number of workers and of ranks, and after a resume. A file that cannot be decoded is replaced by another, reported
and counted; with workers also one that makes its decoder hang or die.

Legend: R samples drawn from one video, B samples in a batch, F frames of a sample (2 for a pair), S side of a frame in
pixels, V videos.
"""

import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import InputError
from dataset_loader.decoding import DecodeError
from dataset_loader.pairings import Pairing, boxes, parse_pairing
from dataset_loader.random_temporal_subsample import RandomClip, RandomTemporalSubsample, TemporalSampler, WithSecond
from dataset_loader.sources import Clip, PictureFiles, Source, VideoFiles, WithPictures, open_source
from dataset_loader.times import at_least
from dataset_loader.transforms import Augmentation, View, apply_view, centre_view, draw_colours
from dataset_loader.workers import Key
from mae.schedule import Phase, Schedule

# How many files a sample may try. With half of the files bad, one sample in a million runs out of them.
TRIES = 20

log = logging.getLogger(__name__)


def pixels(shape: Sequence[int]) -> torch.Tensor:
    """Memory for pixels."""
    return torch.empty(tuple(shape), dtype=torch.uint8)


class PairDataset(Dataset):
    """Pairs of a past and a future frame, R of them from a video at a time. See `get_kinetics_dataset`.

    source: where the videos come from; a list is one of video files. temporal: draws the frames of a sample: of a pair,
    of a past with several futures, of a clip. `make_loader` makes batches of them, epoch by epoch; so does PyTorch's
    own DataLoader, where `set_epoch` before each epoch gives new samples. pairing: what makes a pair (`pairings`);
    schedule: a curriculum in its place (`mae.schedule`). grid: patches along a side of the image, by which some
    pairings shift.
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
        self.epoch = 0
        self._said: set[str] = set()

    @property
    def paths(self) -> Sequence[str]:
        """The names of the videos [V]."""
        return self.source.names

    def __len__(self) -> int:
        return len(self.paths) * self.visits

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Plain values by which a resume knows the data again: how many videos, and a checksum over their names."""
        checksum = 0
        for path in self.paths:
            checksum = zlib.crc32(os.fsencode(os.path.basename(path)), checksum)
        return {"videos": len(self.paths), "names": f"{checksum:08x}"}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of samples that are asked for by a plain index; 0 until then."""
        self.epoch = epoch

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """A sample by its index, of the chosen epoch, or by (epoch, index).

        Returns `video` uint8 [R, F, 3, S, S] in RGB, `time` float64 [R, F] in seconds, `box` int64 [R, F, 5] (the
        crops, see `pairings.boxes`), `seed` int64 [R] (a random number for each, from which its mask may be drawn), all
        without their first dimension if R is 1, and `path`. A file that cannot be decoded is logged, and another
        stands in for it. Raises InputError if no file out of many could be used.
        """
        sample = self.load(key if isinstance(key, tuple) else (self.epoch, range(len(self))[key]))
        for path, reason in sample.pop("bad"):
            if path not in self._said:
                self._said.add(path)
                log.warning("%s: %s; another video stands in for it", path, reason)
        if self.temporal.repeated_sampling > 1:
            return sample
        return {name: value[0] if isinstance(value, torch.Tensor) else value for name, value in sample.items()}

    def load(
        self, key: Key, *, excluded: dict[str, str] | None = None, trying: Callable[[int], None] = lambda attempt: None
    ) -> dict[str, Any]:
        """The sample (epoch, index), without opening what is `excluded` (path: reason).

        As `__getitem__` gives it, but always with R as the first dimension, and with `bad`, a list of (path, reason) of
        the files that could not be used and were replaced. trying: is called with the number of each attempt before
        its file is opened.
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
        raise InputError(f"no video could be used in {TRIES} tries: {listed(bad)}")

    def load_batch(
        self,
        keys: Sequence[Key],
        *,
        excluded: dict[str, str] | None = None,
        trying: Callable[[int, int], None] = lambda row, attempt: None,
        allocate: Callable[[Sequence[int]], torch.Tensor] = pixels,
    ) -> dict[str, Any]:
        """The batch of these samples, see `collate`. `trying` is called with the sample's row as well."""
        samples = [
            self.load(key, excluded=excluded, trying=lambda attempt, row=row: trying(row, attempt))  # type: ignore[misc]
            for row, key in enumerate(keys)
        ]
        return collate(samples, allocate)

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
                numbers = self._numbers(clip, generator)
            except InputError as error:
                raise DecodeError(clip.path, str(error)) from error
            for row, pairing in zip(numbers, pairings, strict=True):
                row[:] = row[0] if pairing.one_frame else row
            frames, times = clip.frames(numbers.ravel())
        times = times.reshape(numbers.shape)
        if any(len(set(t)) < len(set(n)) for t, n in zip(times.tolist(), numbers.tolist(), strict=True)):
            raise DecodeError(clip.path, "is damaged: of two frames that were drawn one stood in for both")
        height, width = frames.shape[1:3]
        views = [self._views(pairing, height, width, numbers.shape[1], generator) for pairing in pairings]
        samples = frames.reshape(*numbers.shape, *frames.shape[1:])  # [R, F, H, W, 3]
        return {
            "video": joined([_shown(*each, self.image_size)[None] for each in zip(samples, views, strict=True)]),
            "time": torch.from_numpy(times),
            "box": torch.stack([boxes([view.crop for view in row]) for row in views]),
        }

    def _numbers(self, clip: Clip, generator: np.random.Generator) -> np.ndarray:
        """int64 [R, F], numbers of frames; of a single picture all are 0."""
        times, shortest = clip.times, self.temporal.shortest
        if len(times) < 2:
            return np.zeros((self.temporal.repeated_sampling, self.temporal.frames), dtype=np.int64)
        if getattr(clip, "assumed", False) and (slower := at_least(times, shortest)) is not times:
            times = slower
            if "assumed" not in self._said:
                self._said.add("assumed")
                log.warning(
                    "%s: nothing tells the times of its %d pictures, which at the assumed rate last less than %.3g s; "
                    "a slower one is assumed, so that the first and the last are used (said once)",
                    clip.path, len(times), shortest,
                )  # fmt: skip
        return self.temporal.draw(times, generator)

    def _views(
        self, pairing: Pairing, height: int, width: int, frames: int, generator: np.random.Generator
    ) -> list[View]:
        """How each frame of a sample is to be seen: crops of its own, everything else in common."""
        if not self.augmentation:
            return [centre_view(height, width)] * frames
        crops = pairing.draw(height, width, frames, generator, self.augmentation, self.grid)
        view = draw_colours(crops[0], generator, self.augmentation)
        views = [replace(view, crop=crop) for crop in crops]
        if self.augmentation.rotation_each:
            most = self.augmentation.rotation
            views[1:] = [replace(view, degrees=float(generator.uniform(-most, most))) for view in views[1:]]
        return views


def _shown(frames: np.ndarray, views: list[View], size: int) -> torch.Tensor:
    """uint8 [F, 3, size, size], by one call where all frames have the same view."""
    if all(view == views[0] for view in views):
        return apply_view(frames, views[0], size)
    shown = [apply_view(frames[f : f + 1], view, size) for f, view in enumerate(views)]
    return torch.cat([frame.permute(0, 2, 3, 1) for frame in shown]).permute(0, 3, 1, 2)  # channels last in memory


def get_kinetics_dataset(
    dataset_dir: str | Path | Iterable[str | Path],
    *,
    image_size: int = 224,
    min_gap: float = 4,
    max_gap: float = 48,
    repeated_sampling: int = 1,
    augment: bool | Augmentation = True,
    rotation: float = 0.0,
    rotation_each: bool = False,
    seed: int = 0,
    visits: int = 1,
    futures: int = 1,
    second: str = "none",
    clip_frames: int | None = None,
    stride: float = 4,
    unit: Literal["frames", "seconds"] = "frames",
    fps: float = 30,
    template: str | None = None,
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
    frames of a sample; else the central square. rotation: turns the frames as well, by up to so many degrees, all alike
    or (rotation_each) each by its own angle. second: a second frame to predict from, `past` or `later`; samples are
    then the past, that frame, and the one to predict (`WithSecond`). visits:
    how often an epoch visits each video. futures: K frames after the past, each at a gap of its own: samples of 1 + K
    frames. clip_frames: in place of pairs, clips of so many frames, `stride` apart (in `unit` as well). fps: the rate
    of pictures that have no times beside them. template: which pictures of folders that hold several kinds, such as
    "img_{:05d}.jpg". pairing, schedule: what makes a pair, always or by the epoch
    (`pairings`, `mae.schedule`); patch_size: the model's, for pairings that shift by whole patches.
    photos: single pictures beside the videos, files or folders of them, of which one-frame pairings make pairs.
    """
    if clip_frames is not None and (pairing != "video" or schedule):
        raise InputError(f"pairing {schedule or pairing!r} makes pairs; clips of {clip_frames} frames have none")
    temporal: TemporalSampler
    if clip_frames is None:
        pairs = RandomTemporalSubsample(
            min_gap, max_gap, repeated_sampling=repeated_sampling, futures=futures + (second != "none"), unit=unit
        )
        temporal = pairs if second == "none" else WithSecond(pairs, second)
    else:
        temporal = RandomClip(clip_frames, stride, repeated_sampling=repeated_sampling, unit=unit)
    if augment and rotation:
        plain = Augmentation() if augment is True else augment
        augment = replace(plain, rotation=rotation, rotation_each=rotation_each)
    source = open_source(dataset_dir, fps=fps, template=template or None)
    if photos is not None:
        source = WithPictures(source, PictureFiles(photos))
    if isinstance(dataset_dir, str | Path):
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # which may lack letters of a name
        print(f"{dataset_dir}: {source}".encode(encoding, "backslashreplace").decode(encoding))
    return PairDataset(
        source, temporal, image_size=image_size, augment=augment, seed=seed, visits=visits,
        pairing=pairing, schedule=schedule, grid=max(1, image_size // patch_size),
    )  # fmt: skip


def joined(videos: Sequence[torch.Tensor], allocate: Callable[[Sequence[int]], torch.Tensor] = pixels) -> torch.Tensor:
    """Join uint8 videos [R, F, 3, S, S] into [B, F, 3, S, S], in memory that `allocate` gives.

    In memory the channels lie last, as they come from decoders and from resizing: turning them would cost a tenth of
    what decoding a pair of JPEGs does.
    """
    if len(videos) == 1 and allocate is pixels:
        return videos[0]
    _, F, C, S, _ = videos[0].shape
    whole = allocate((sum(map(len, videos)), F, S, S, C)).permute(0, 1, 4, 2, 3)
    for place, video in zip(whole.split([len(video) for video in videos]), videos, strict=True):
        place.copy_(video)
    return whole


def collate(
    samples: list[dict[str, Any]], allocate: Callable[[Sequence[int]], torch.Tensor] = pixels
) -> dict[str, Any]:
    """Samples of R each → one batch, see `PairLoader`. allocate: gives the memory for `video`."""
    batch: dict[str, Any] = {
        name: torch.cat([sample[name] for sample in samples]) for name in samples[0].keys() - {"video", "path", "bad"}
    }
    batch["video"] = joined([sample["video"] for sample in samples], allocate)
    batch["path"] = [sample["path"] for sample in samples for _ in sample["video"]]
    batch["bad"] = [entry for sample in samples for entry in sample["bad"]]
    return batch


def listed(bad: dict[str, str]) -> str:
    """The first few bad files with their reasons, in one line."""
    shown = [f"{path} ({reason})" for path, reason in list(bad.items())[:5]]
    return "; ".join(shown) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
