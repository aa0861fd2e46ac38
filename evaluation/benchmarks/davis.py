"""DAVIS 2016 and 2017, semi-supervised (Perazzi et al. 2016; Pont-Tuset et al. 2017)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common.errors import InputError
from common.files import write_text
from evaluation.benchmark import Objects, Record
from evaluation.videos import Mask, Video, mask_video, read_list, read_mask, select

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
SEQUENCE_COLUMNS = ("Sequence", "J-Mean", "F-Mean")


@dataclass(frozen=True)
class Davis(Objects):
    """DAVIS of 2016 or 2017, J and F of each object: {JPEGImages,Annotations}/480p/<sequence>/, ImageSets/<year>/.

    2016 has one object, whatever its grey level. In 2017 the pixel is the object and 255 is void, which the official
    tool counts as background; the objects are 1 … the first mask's largest, so that later ones are not scored, and
    one that never appears scores 1.
    """

    year: Literal[2016, 2017] = 2017
    """whose lists and labels"""
    split: str = "val"
    """which list of videos"""

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        listed, other = (self.data / "ImageSets" / str(y) / f"{self.split}.txt" for y in (self.year, 4033 - self.year))
        if other.is_file() and not listed.exists():
            raise InputError(f"{listed} does not exist, but {other} does: give year {4033 - self.year}")
        for name in select(read_list(listed), names):
            pictures, masks = (self.data / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
            change = _binary if self.year == 2016 else _without_void
            yield mask_video(name, pictures, masks, change, roots=(self.data,), every_mask=True)

    def read_result(self, file: Path) -> Mask:
        mask = read_mask(file)
        return _binary(mask) if self.year == 2016 else mask

    def write(self, folder: Path, row: Mapping[str, float], records: Sequence[Record]) -> None:
        """The two files of the official tool: three decimals, a row per object called `<sequence>_<object>`."""
        whole = [GLOBAL_COLUMNS, [f"{row[name]:.3f}" for name in GLOBAL_COLUMNS]]
        each = [
            (f"{record['video']}_{entry['object']}", f"{entry['J-Mean']:.3f}", f"{entry['F-Mean']:.3f}")
            for record in records
            for entry in record["scores"]["objects"]
        ]
        for name, lines in (("global", whole), ("per-sequence", [SEQUENCE_COLUMNS, *each])):
            write_text(folder / f"{name}_results.csv", "".join(",".join(line) + "\n" for line in lines))


def _without_void(mask: Mask) -> Mask:
    return np.where(mask == 255, 0, mask).astype(np.uint8)


def _binary(mask: Mask) -> Mask:
    return (mask > 0).astype(np.uint8)
