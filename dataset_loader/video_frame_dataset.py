"""Ledgers: lists of frame folders as the public MAE3D work has them, and its `VideoFrameDataset` of even segments.

A line is `name first last class`, separated by blanks or commas; the first line may be a header. `name` is a folder
below the root, `first` and `last` are the numbers of its frames, both included. FACTS: the other public attempt.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from common.errors import InputError
from dataset_loader.dataset import PairDataset
from dataset_loader.decoding import DecodeError
from dataset_loader.frame_folders import FrameClip, find_numbers, read_regular
from dataset_loader.images import decode_image
from dataset_loader.sources import Clip, Names
from dataset_loader.transforms import Augmentation


class Ledger:
    """The clips of a ledger, a `Source`. See the top of this file for its format.

    root: the folder that holds the frame folders. template: the names of the frames, such as "img_{:05d}.jpg"; None
    finds it out for each folder. fps: the rate of frames without times. complete: every frame from the first to the
    last must be there, for which all folders are listed; else a missing one leaves a gap in time. Raises InputError
    with the number of the line for one that cannot be read or does not fit its folder.
    """

    def __init__(
        self,
        root: str | Path,
        path: str | Path,
        *,
        template: str | None = None,
        fps: float = 30,
        complete: bool = False,
    ) -> None:
        if template is not None:
            _check_template(template)
        self.path = str(path)
        self.fps = fps
        self.labels: list[int | list[int]] = []
        folders, first, last, templates = [], [], [], []
        seen: dict[str, int] = {}
        for number, fields in _lines(path):
            where = f"{path}, line {number}"
            try:
                name, (start, end, *classes) = fields[0], (int(field) for field in fields[1:])
            except ValueError:
                raise InputError(
                    f"{where}: {' '.join(fields)!r} is not 'name first last class', separated by blanks or by commas"
                ) from None
            folder = os.path.join(root, name)
            if start > end:
                raise InputError(f"{where}: the first frame of {name} is {start}, the last {end}")
            found = _template(folder, start, end, [template] if template else list(seen), template, where)
            if complete:
                there = set(os.listdir(folder))
                missing = [number for number in range(start, end + 1) if found.format(number) not in there]
                if missing:
                    raise InputError(
                        f"{where}: {folder} lacks {found.format(missing[0])} ({len(missing)} of its frames {start} to "
                        f"{end}), and segments are of consecutive frames; complete it, or leave the line out"
                    )
            templates.append(seen.setdefault(found, len(seen)))
            folders.append(folder)
            first.append(start)
            last.append(end)
            self.labels.append(classes[0] if len(classes) == 1 else classes)
        if not folders:
            raise InputError(f"{path} names no video")
        self.names = Names(folders)
        self.first, self.last = np.array(first), np.array(last)
        self.templates = list(seen)
        self._template = np.array(templates)

    def __len__(self) -> int:
        return len(self.names)

    def template(self, number: int) -> str:
        """How the frames of a clip are named, as "img_{:05d}.jpg"."""
        return self.templates[self._template[number]]

    def open(self, number: int) -> Clip:
        first, last = int(self.first[number]), int(self.last[number])
        return FrameClip(self.names[number], self.fps, self.template(number), first, last)

    def __str__(self) -> str:
        return f"{len(self)} clips of the ledger {self.path}, at fps={self.fps:g} where no times.txt is beside them"


class Segments:
    """Draws clips of even segments, as `VideoFrameDataset` does, for a `PairDataset`: a `TemporalSampler`.

    test_mode: the centres. repeated_sampling: R clips, each a fresh draw.
    """

    def __init__(
        self, num_segments: int = 4, frames_per_segment: int = 4, *, test_mode: bool = False, repeated_sampling: int = 1
    ) -> None:
        if repeated_sampling < 1:
            raise InputError(f"repeated_sampling is {repeated_sampling}; it must be at least 1")
        if num_segments < 1 or frames_per_segment < 1:
            raise InputError(
                f"num_segments {num_segments} and frames_per_segment {frames_per_segment} must be at least 1"
            )
        self.num_segments = num_segments
        self.frames_per_segment = frames_per_segment
        self.frames = num_segments * frames_per_segment
        self.test_mode = test_mode
        self.repeated_sampling = repeated_sampling

    def draw(self, times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw R clips: int64 [R, F], numbers into `times`. Raises InputError for a video shorter than a segment."""
        if len(times) < self.frames_per_segment:
            raise InputError(f"a video has {len(times)} frames, fewer than the {self.frames_per_segment} of a segment")
        drawn = [self.starts(len(times), None if self.test_mode else generator) for _ in range(self.repeated_sampling)]
        return (np.stack(drawn)[:, :, None] + np.arange(self.frames_per_segment)).reshape(len(drawn), self.frames)

    def starts(self, length: int, generator: np.random.Generator | None) -> np.ndarray:
        """Where the segments' frames begin in a clip of `length` frames: int64 [num_segments], from 0 on.

        generator: what draws them; None takes the centres. A clip with fewer starts than segments repeats some.
        """
        possible = length - self.frames_per_segment + 1
        if generator is None:
            return ((np.arange(self.num_segments) + 0.5) * possible / self.num_segments).astype(np.int64)
        edges = np.arange(self.num_segments + 1) * possible // self.num_segments
        return generator.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))


class VideoFrameDataset(Dataset):
    """Frames of even segments of each clip in a ledger, with its class: the interface that MAE3D's scripts expect.

    The clip is cut into `num_segments` even parts; in each a start is drawn (in test mode its centre is taken), from
    which `frames_per_segment` consecutive frames follow. An item is (frames, class): a list of PIL images, or what
    `transform` makes of that list; the class a number, or a list where the ledger has several. Starts drawn for a plain
    index follow torch's generator; for an index (epoch, index), as `EpochSampler` gives it, (seed, epoch, index) alone.
    A model of clips is trained on them by way of `clips`:

        data = VideoFrameDataset(root, "ledger.csv", num_segments=4, frames_per_segment=4)
        loader = make_loader(data.clips(image_size=224, repeated_sampling=4), batch_size=8, workers=4)
        model = build_model("mae_st_base_patch16")
        ml.utils.train(model, loader, epochs=400, base_lr=1e-3 / 4, warmup_epochs=40)

    1e-3 / 4: `train` scales the rate by the clips of a step, the paper by its videos, each repeated 4 times.
    """

    def __init__(
        self,
        root_path: str | Path,
        annotationfile_path: str | Path,
        num_segments: int = 3,
        frames_per_segment: int = 1,
        imagefile_template: str | None = None,
        transform: Callable[[list[Image.Image]], Any] | None = None,
        test_mode: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        self.segments = Segments(num_segments, frames_per_segment, test_mode=test_mode)
        self.ledger = Ledger(root_path, annotationfile_path, template=imagefile_template, complete=True)
        lengths = self.ledger.last - self.ledger.first + 1
        short = np.flatnonzero(lengths < frames_per_segment)
        if len(short):
            raise InputError(
                f"{annotationfile_path}: {self.ledger.names[short[0]]} has {lengths[short[0]]} frames, fewer than the "
                f"{frames_per_segment} of a segment ({len(short)} such lines)"
            )
        self.num_segments = num_segments
        self.frames_per_segment = frames_per_segment
        self.transform = transform
        self.test_mode = test_mode
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ledger)

    def starts(self, length: int, generator: np.random.Generator | None) -> np.ndarray:
        """Where the segments' frames begin; see `Segments.starts`."""
        return self.segments.starts(length, generator)

    def clips(
        self, *, image_size: int = 224, augment: bool | Augmentation = True, repeated_sampling: int = 1, visits: int = 1
    ) -> PairDataset:
        """The same frames as samples for `make_loader`: `video` uint8 [R, F, 3, S, S], F all segments' frames in turn.

        One crop and flip for all frames of a clip, unless `augment` is False; the classes are left out. Sample
        (epoch, index) has the frames that the item of this index has; with repeated_sampling R, R - 1 more clips
        follow, from the same opened folder.
        """
        if self.transform is not None:
            raise InputError("clips() crops and flips by itself; build this VideoFrameDataset without a transform")
        temporal = Segments(
            self.num_segments, self.frames_per_segment, test_mode=self.test_mode, repeated_sampling=repeated_sampling
        )
        return PairDataset(self.ledger, temporal, image_size=image_size, augment=augment, seed=self.seed, visits=visits)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, int | list[int]]:
        index = key[1] if isinstance(key, tuple) else key
        index = range(len(self))[index]
        generator = None
        if not self.test_mode:
            drawn = [self.seed, *key] if isinstance(key, tuple) else int(torch.randint(2**63 - 1, ()))
            generator = np.random.default_rng(drawn)
        first = int(self.ledger.first[index])
        starts = self.starts(int(self.ledger.last[index]) - first + 1, generator)
        numbers = first + (starts[:, None] + np.arange(self.frames_per_segment)).ravel()
        folder, template = self.ledger.names[index], self.ledger.template(index)
        images = [self._image(folder, template.format(number)) for number in numbers]
        return (self.transform(images) if self.transform else images), self.ledger.labels[index]

    @staticmethod
    def _image(folder: str, name: str) -> Image.Image:
        try:
            return Image.fromarray(decode_image(read_regular(os.path.join(folder, name), folder)))
        except ValueError as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(folder, f"{name} cannot be decoded ({error})") from error


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(number from 1 on, fields) of the lines of a ledger that name a clip."""
    try:
        lines = Path(path).read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise InputError(f"the ledger {path} cannot be read ({error.strerror})") from error
    headed = True
    for number, line in enumerate(lines, 1):
        fields = [field.strip().strip('"') for field in line.split(",")] if "," in line else line.split()
        if not any(fields):
            continue
        header = headed and len(fields) > 1 and not any(field.lstrip("-").isdigit() for field in fields[1:])
        headed = False
        if not header:
            yield number, fields


def _check_template(template: str) -> None:
    try:
        fits = template.format(1) != template.format(2)
    except (ValueError, LookupError, AttributeError, TypeError):
        fits = False
    if not fits:
        raise InputError(
            f"the imagefile_template is {template!r}; it must have a place for a frame's number, as 'img_{{:05d}}.jpg'"
        )


def _template(folder: str, first: int, last: int, likely: list[str], given: str | None, where: str) -> str:
    """Which template names the first and the last frame of a clip: one of the likely ones, or what the folder holds."""
    for template in likely:
        if all(os.path.exists(os.path.join(folder, template.format(number))) for number in (first, last)):
            return template
    try:
        template, numbers = find_numbers(folder, given)
    except DecodeError as error:
        raise InputError(f"{where}: {error}") from None
    for number in (first, last):
        if number not in numbers:
            raise InputError(
                f"{where}: frame {number} of {folder} is not there, which holds {template.format(int(numbers[0]))} "
                f"to {template.format(int(numbers[-1]))}"
            )
    return template
