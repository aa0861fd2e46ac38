"""Videos as folders of numbered pictures: `img_00001.jpg`, `frame-12.png`, with any prefix and any number of digits.

The times of the frames come from `times.txt` in the folder, one time in seconds a line for each picture in their
order; without it the pictures are taken to be 1/fps apart by their numbers, so that a missing one leaves its gap.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dataset_loader.decoding import DecodeError
from dataset_loader.files import IMAGE_SUFFIXES, NUMBERED
from dataset_loader.images import decode_numbered

TIMES_FILE = "times.txt"


class FrameClip:
    """One folder of pictures, opened: its `times`, and `frames` of it. Use it as a context manager.

    template: which pictures, such as "img_{:05d}.jpg"; None finds out. first, last: take only these numbers, both
    included. Raises DecodeError if there are none, or the template is needed because there are several kinds.
    """

    def __init__(
        self, folder: str, fps: float, template: str | None = None, first: int | None = None, last: int | None = None
    ) -> None:
        self.path = folder
        self.template, self.numbers = find_numbers(folder, template)
        self.held = int(self.numbers[0]), int(self.numbers[-1])  # the first and the last number in the folder
        times = self._times(fps)
        chosen = (self.numbers >= (self.numbers[0] if first is None else first)) & (
            self.numbers <= (self.numbers[-1] if last is None else last)
        )
        self.numbers, self.times = self.numbers[chosen], times[chosen]
        if len(self.numbers) == 0:
            raise DecodeError(folder, f"holds no picture numbered {first} to {last}")

    def __enter__(self) -> "FrameClip":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the pictures at these places in `times`: uint8 RGB [n, H, W, 3], and their times [n] in seconds."""
        images = decode_numbered(self.path, numbers, lambda n: self._picture(int(self.numbers[n])))
        return images, self.times[numbers]

    def _picture(self, number: int) -> bytes:
        return read_regular(os.path.join(self.path, self.template.format(number)), self.path)

    def _times(self, fps: float) -> np.ndarray:
        """Of all pictures, float64 in seconds."""
        path = os.path.join(self.path, TIMES_FILE)
        if not os.path.exists(path):
            return (self.numbers - self.numbers[0]) / fps
        try:
            times = np.array(read_regular(path, self.path).split(), dtype=np.float64)
        except ValueError as error:
            raise DecodeError(self.path, f"its {TIMES_FILE} is not a list of seconds ({error})") from error
        if len(times) != len(self.numbers):
            raise DecodeError(self.path, f"its {TIMES_FILE} has {len(times)} times for {len(self.numbers)} pictures")
        if not (np.diff(times) > 0).all():
            raise DecodeError(self.path, f"the times in its {TIMES_FILE} do not increase")
        return times


def find_numbers(folder: str, template: str | None = None) -> tuple[str, np.ndarray]:
    """The template of a folder's pictures, as "img_{:05d}.jpg", and the numbers that are there, ascending."""
    kinds = defaultdict(list)
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DecodeError(folder, f"cannot be listed ({error.strerror})") from error
    for name in names:
        parts = NUMBERED.fullmatch(name)
        if parts and parts[3].lower() in IMAGE_SUFFIXES and name[0] != ".":
            kinds[parts[1], parts[3]].append(parts[2])
    if template is not None:
        kinds = {kind: kept for kind, digits in kinds.items() if (kept := _fitting(template, *kind, digits))}  # type: ignore[assignment]
    if not kinds:
        raise DecodeError(folder, f"holds no pictures {template or 'with numbered names, such as img_00001.jpg'}")
    found = sorted(f"{_escaped(prefix)}{{:0{min(map(len, d))}d}}{_escaped(end)}" for (prefix, end), d in kinds.items())
    if len(found) > 1:
        raise DecodeError(folder, f"holds pictures of several kinds: {', '.join(found)}; name one by its template")
    ((_, digits),) = kinds.items()
    numbers = np.unique(np.array(digits, dtype=np.int64))
    if len(numbers) < len(digits):
        raise DecodeError(folder, f"two of its pictures have the same number, in {found[0]}")
    return template or found[0], numbers


def read_regular(path: str, video: str) -> bytes:
    """The content of a file; raises DecodeError about `video` for what cannot be read, or a pipe, which would block."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise DecodeError(video, f"{os.path.basename(path)} is not a regular file")
            return opened.read()
    except OSError as error:
        raise DecodeError(video, f"{os.path.basename(path)} cannot be read ({error.strerror})") from error


def _fitting(template: str, prefix: str, suffix: str, digits: list[str]) -> list[str]:
    return [number for number in digits if template.format(int(number)) == prefix + number + suffix]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
