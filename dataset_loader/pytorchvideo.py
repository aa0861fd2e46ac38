"""pytorchvideo's data pipeline with this project's sampling in time. An extra: `pip install 'siammae[pytorchvideo]'`.

`labeled_video_dataset` is a `LabeledVideoDataset` over a folder; our `RandomTemporalSubsample` stands in its pipelines
as a transform of the `video` of a sample. Many times slower than `get_kinetics_dataset`, which needs none of this: for
comparing, and for who has a pipeline of pytorchvideo's already.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from dataset_loader.files import find_videos
from dataset_loader.random_temporal_subsample import RandomTemporalSubsample

# What pytorchvideo imports, and what torchvision has in its place since 0.17.
ALIAS = "torchvision.transforms.functional_tensor"
ORIGINAL = "torchvision.transforms._functional_tensor"

log = logging.getLogger(__name__)


def import_pytorchvideo(name: str) -> ModuleType:
    """Import a module of pytorchvideo, such as "pytorchvideo.transforms", also where torchvision is too new for it.

    The module that torchvision has renamed goes by its old name while the import runs, and no longer. Raises InputError
    if pytorchvideo is not installed.
    """
    added = ALIAS not in sys.modules
    if added:
        sys.modules[ALIAS] = importlib.import_module(ORIGINAL)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs pytorchvideo ({error}); pip install 'siammae[pytorchvideo]'") from error
    finally:
        if added:
            del sys.modules[ALIAS]


def labeled_video_dataset(
    dataset_dir: str | Path | Iterable[str | Path],
    *,
    temporal: RandomTemporalSubsample | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    label: Callable[[str], int] = lambda path: 0,
    **settings: Any,
) -> Any:
    """A `LabeledVideoDataset` whose samples have, as `video`, the frames that `temporal` draws: float [C, F, H, W].

    temporal: the sampler; its default is that of SiamMAE. Clips that are just long enough for its longest gap are
    drawn by pytorchvideo, pairs from these clips by us. transform: is given `video` after that. label: the number of a
    file's class. settings: further arguments of LabeledVideoDataset.
    """
    data = import_pytorchvideo("pytorchvideo.data")
    temporal = RandomTemporalSubsample() if temporal is None else temporal
    clips = _Clips(data.make_clip_sampler("random", (temporal.max_gap + 1) / temporal.fps))
    prepare = _Prepare(clips, temporal, transform)
    paths = [(path, {"label": label(path)}) for path in find_videos(dataset_dir)]
    return data.LabeledVideoDataset(paths, clips, transform=prepare, **{"decode_audio": False, **settings})


class _Clips:
    """A clip sampler of theirs, and how many seconds the clip has that it chose last: theirs come without times."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.seconds = 0.0

    def __call__(self, last_end: Any, duration: Any, annotation: Any) -> Any:
        chosen = self._sampler(last_end, duration, annotation)
        self.seconds = float(min(chosen.clip_end_sec, duration) - chosen.clip_start_sec)
        return chosen

    def reset(self) -> None:
        self._sampler.reset()


class _Prepare:
    """Leaves of a sample's `video` the frames that our sampler draws: at even distances over the clip, as they come."""

    def __init__(self, clips: _Clips, temporal: RandomTemporalSubsample, transform: Callable | None) -> None:
        self._clips = clips
        self._temporal = temporal
        self._transform = transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        video = sample["video"]  # [C, N, H, W]
        times = np.arange(video.shape[1]) * (self._clips.seconds / video.shape[1])
        try:
            video = self._temporal(video, times)
        except InputError as error:
            log.warning("%s %s; it is left out", sample.get("video_name", "a video"), error)
            return None  # theirs then takes the next video
        return {**sample, "video": video if self._transform is None else self._transform(video)}
