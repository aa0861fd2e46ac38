"""`VideoFrameDataset`: even segments of the clips in a ledger, as the public MAE3D work draws them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from common.errors import InputError
from dataset_loader.dataset import PairDataset
from dataset_loader.ledger import Ledger
from dataset_loader.transforms import Augmentation


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
        self.futures = 1
        self.shortest = 0.0  # it counts frames
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
        starts = self.segments.starts(int(self.ledger.last[index] - self.ledger.first[index]) + 1, generator)
        numbers = (starts[:, None] + np.arange(self.frames_per_segment)).ravel()
        with self.ledger.open(index) as clip:
            images = [Image.fromarray(frame) for frame in clip.frames(numbers)[0]]
        return (self.transform(images) if self.transform else images), self.ledger.labels[index]
