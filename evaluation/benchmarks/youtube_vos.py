"""YouTube-VOS 2018 and 2019 (Xu et al. 2018): objects that may start late."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_text
from evaluation.benchmark import LateObjects
from evaluation.videos import Mask, Video, check_size, expecting, picture_size, pictures_in, read_mask, select


@dataclass(frozen=True)
class YouTubeVOS(LateObjects):
    """YouTube-VOS, J and F of each object after its first frame: <split>/{JPEGImages,Annotations}/<video>/, meta.json.

    The truth is public for the training split alone; an object's mask is given in the first frame that meta.json names.
    """

    split: str = "train"
    """which folder"""

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        root = self.data / self.split
        file = root / "meta.json"
        with expecting(f'{file} is not YouTube-VOS\'s: expected {{"videos": {{…}}}}'):
            content: Any = json.loads(read_text(file))["videos"]
            frames = {
                name: {int(key): entry["frames"] for key, entry in video["objects"].items()}
                for name, video in content.items()
            }
        for name in select(list(frames), names):
            yield self._video(name, frames[name])

    def _video(self, name: str, objects: dict[int, list[str]]) -> Video:
        root = self.data / self.split
        paths, masks = pictures_in(root / "JPEGImages" / name), root / "Annotations" / name
        numbers = {path.stem: index for index, path in enumerate(paths)}

        def label(index: int) -> Mask | None:
            file = masks / f"{paths[index].stem}.png"
            if not file.exists():
                return None
            mask = read_mask(file)
            check_size(mask.shape, picture_size(paths[index]), paths[index], file)
            return mask

        starts: dict[int, list[int]] = {}
        for key, stems in objects.items():
            first = min((numbers[stem] for stem in stems if stem in numbers), default=None)
            if first is None:
                raise InputError(
                    f"{name}: none of the frames of object {key} is a picture in {root / 'JPEGImages' / name}"
                )
            starts.setdefault(first, []).append(key)
        given: dict[int, Mask] = {}
        for index, keys in sorted(starts.items()):
            mask = label(index)
            if mask is None:
                raise InputError(f"{name}: {masks / paths[index].stem}.png does not exist, the first mask of {keys}")
            given[index] = np.where(np.isin(mask, keys), mask, 0).astype(np.uint8)
        return self.video(name, paths, given, label)
