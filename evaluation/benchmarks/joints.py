"""Keypoints of anyone's own, or of BADJA (Biggs et al. 2018), from a JSON file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_text
from evaluation import videos
from evaluation.benchmark import Keypoints
from evaluation.videos import Video, expecting, folder_of, pictures_in, select

LAYOUT = '{"joints": {id: name}, "sequences": {sequence: [{"frame": stem, "joints": {id: [x, y]}}]}}'


@dataclass(frozen=True)
class Joints(Keypoints):
    """Keypoints in a JSON file, PCK: {"joints": {id: name}, "sequences": {sequence: [{"frame": stem, "joints":
    {id: [x, y]}}]}}. A video starts at its first labelled frame; a joint that a frame lacks is not known there.
    """

    data: Path
    """the JSON file"""
    pictures: Path
    """folder with a folder of pictures for each video of the JSON file; nothing is written there"""

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        file = self.data
        with expecting(f"{file} is not a file of keypoints: expected {LAYOUT}"):
            content: Any = json.loads(read_text(file))
            ids = list(content["joints"])
            labels = {
                name: {entry["frame"]: _in_order(entry["joints"], ids) for entry in entries}
                for name, entries in content["sequences"].items()
            }
        for name in select(list(labels), names):
            known, paths = labels[name], pictures_in(self.pictures / name)
            start = next((index for index, path in enumerate(paths) if path.stem in known), None)
            if start is None:
                raise InputError(f"{file}: none of the frames of {name} is a picture in {self.pictures / name}")
            paths = paths[start:]
            truths = [known.get(path.stem) for path in paths]
            yield Video(name, paths, known[paths[0].stem], truths.__getitem__, (self.pictures, *folder_of(file)))


def _in_order(found: dict[str, list[float]], ids: list[str]) -> videos.Joints:
    unknown = set(found) - set(ids)
    if unknown:
        raise ValueError(f"joints {sorted(unknown)} are not declared")
    return np.array([found.get(joint, (np.nan, np.nan)) for joint in ids], dtype=np.float64).reshape(len(ids), 2)
