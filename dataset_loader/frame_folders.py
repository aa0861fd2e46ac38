"""Videos as folders of numbered pictures: `img_00001.jpg`, `frame-12.png`, with any prefix and any number of digits.

The times of the frames come from `times.txt` in the folder, one time in seconds a line for each picture in their
order; without it the pictures are taken to be 1/fps apart by their numbers, so that a missing one leaves its gap.
Names that are clock readings are told by their form, size and distances: nanoseconds to seconds since 1970 (EuRoC),
seconds with a fraction (TUM), a date with the time of day. Numbers that make no sensible rate count as the order alone,
1/fps apart, which is logged.
"""

import logging
import os
import re
import stat
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from common.errors import InputError
from common.files import decode_text
from dataset_loader.decoding import DecodeError
from dataset_loader.files import IMAGE_SUFFIXES, NUMBERED
from dataset_loader.images import decode_numbered
from dataset_loader.times import usual_spacing

TIMES_FILE = "times.txt"
DECIMAL = re.compile(r"(.*?)(\d+\.\d+)(\.[^.]+)", re.DOTALL)
DATED = re.compile(
    r"(.*?)(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[-_.T ]*(\d\d)[-_.:h]?(\d\d)[-_.:m]?(\d\d)"
    r"(?:[-_.,]?(\d{3}|\d{6}|\d{9}))?(\.[^.]+)",
    re.DOTALL,
)
EPOCH = 10**9  # a number of so many digits is no frame's, but a time since 1970, in one of these units by its digits
UNITS = {10: (1.0, "seconds"), 13: (1e-3, "milliseconds"), 16: (1e-6, "microseconds"), 19: (1e-9, "nanoseconds")}
LONGEST = 1.0  # seconds from a picture to the next, usually: more makes no sensible rate

log = logging.getLogger(__name__)
_told: set[str] = set()


class FrameClip:
    """One folder of pictures, opened: its `times`, and `frames` of it. Use it as a context manager.

    template: which pictures, such as "img_{:05d}.jpg"; None finds out. first, last: take only these numbers, both
    included. assumed: whether the times are only their numbers, or their order, at `fps`. Raises DecodeError if there
    are none, or the template is needed because there are several kinds.
    """

    def __init__(
        self, folder: str, fps: float, template: str | None = None, first: int | None = None, last: int | None = None
    ) -> None:
        self.path = folder
        self.template, self.numbers, names = find_numbers(folder, template)
        self.held = self.numbers[0], self.numbers[-1]  # the first and the last number in the folder
        times = self._times(fps)
        chosen = np.arange(len(names))
        if first is not None and last is not None:
            chosen = np.flatnonzero((self.numbers >= first) & (self.numbers <= last))
        self.numbers, self.times, self._names = self.numbers[chosen], times[chosen], [names[k] for k in chosen]
        if len(self.numbers) == 0:
            raise DecodeError(folder, f"holds no picture numbered {first} to {last}")

    def __enter__(self) -> "FrameClip":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the pictures at these places in `times`: uint8 RGB [n, H, W, 3], and their times [n] in seconds."""
        images = decode_numbered(
            self.path, numbers, lambda n: read_regular(os.path.join(self.path, self._names[n]), self.path)
        )
        return images, self.times[numbers]

    def _times(self, fps: float) -> np.ndarray:
        """Of all pictures, float64 in seconds."""
        path = os.path.join(self.path, TIMES_FILE)
        self.assumed = False
        if not os.path.exists(path):
            times, self.assumed, told = times_of(self.numbers, fps)
            if told and told not in _told:
                _told.add(told)
                log.warning("%s: %s (said once)", self.path, told)
            return times
        try:
            times = np.array(decode_text(read_regular(path, self.path)).split(), dtype=np.float64)
        except ValueError as error:
            raise DecodeError(self.path, f"its {TIMES_FILE} is not a list of seconds ({error})") from error
        if len(times) != len(self.numbers):
            raise DecodeError(self.path, f"its {TIMES_FILE} has {len(times)} times for {len(self.numbers)} pictures")
        if not np.isfinite(times).all() or not np.diff(times).all():  # they may go back: a reset of the clock
            raise DecodeError(self.path, f"the times in its {TIMES_FILE} do not increase")
        return times


def times_of(numbers: np.ndarray, fps: float) -> tuple[np.ndarray, bool, str]:
    """Times in seconds of pictures with these ascending numbers, whether `fps` is their only source, and what is to be
    said of how they were found: nothing if the numbers are those of frames.
    """
    since = np.array([float(number - numbers[0]) for number in numbers])
    usual = usual_spacing(since)
    unit, name = UNITS.get(len(str(numbers[0])), (0.0, ""))
    by_clock = numbers[0] >= EPOCH and 1e-3 <= usual * unit <= LONGEST and (usual > 1 or unit == 1)
    if numbers.dtype == np.float64:
        by_clock, unit, name = True, 1.0, "the time"
    if by_clock:
        return since * unit, False, f"its pictures are named by {name}, {1 / (usual * unit):.3g} a second"
    if usual <= 1 or (numbers[0] < EPOCH and usual <= LONGEST * fps):
        return since / fps, True, ""
    said = (
        f"the numbers of its pictures ({numbers[0]}, {numbers[1]} …) make no sensible rate; they are taken as the "
        f"order alone, at fps={fps:g}; write {TIMES_FILE} beside them if that is wrong"
    )
    return np.arange(len(numbers)) / fps, True, said


class Numbered(NamedTuple):
    """The pictures of a folder: a template, and by ascending number int64 (or of more digits: objects) their names."""

    template: str
    numbers: np.ndarray
    names: list[str]


def find_numbers(folder: str, template: str | None = None) -> Numbered:
    """The pictures of a folder whose names differ by a number alone. Raises DecodeError."""
    kinds = defaultdict(list)
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DecodeError(folder, f"cannot be listed ({error.strerror})") from error
    for name in names:
        parts = NUMBERED.fullmatch(name)
        if not parts or parts[3].lower() not in IMAGE_SUFFIXES or name[0] == ".":
            continue
        if template is None or template.format(int(parts[2])) == name:
            kinds[parts[1], parts[3]].append((int(parts[2]), len(parts[2]), name))
    if not kinds:
        raise DecodeError(folder, f"holds no pictures {template or 'with numbered names, such as img_00001.jpg'}")
    found = sorted(
        f"{_escaped(prefix)}{{:0{min(width for _, width, _ in kind)}d}}{_escaped(end)}"
        for (prefix, end), kind in kinds.items()
    )
    if template is None and (timed := _clock_readings([name for kind in kinds.values() for *_, name in kind])):
        return timed
    if len(found) > 1:
        raise DecodeError(
            folder, f"holds pictures of several kinds: {', '.join(found[:4])}; name one by its template (--template)"
        )
    ordered = sorted(next(iter(kinds.values())))
    numbers = np.array([number for number, _, _ in ordered], dtype=None if ordered[-1][0] < 2**63 else object)
    if (numbers[1:] == numbers[:-1]).any():
        raise DecodeError(folder, f"two of its pictures have the same number, in {found[0]}")
    return Numbered(template or found[0], numbers, [name for _, _, name in ordered])


def _clock_readings(names: list[str]) -> Numbered | None:
    """Names that are dates with the time of day, or seconds with a fraction (1305031102.175304.png): in seconds.

    None if one is neither, or they make no sensible rate: fractions may count frames (v1.0001.png).
    """
    found: list[tuple[_Kind, float, str]] = []
    for name in names:
        if not (read := _seconds(name)) or (found and read[0] != found[0][0]):
            return None
        found.append((*read, name))
    kind = found[0][0]
    found.sort()
    numbers = np.array([seconds for _, seconds, _ in found])
    usual = usual_spacing(numbers)
    counted = np.ptp(numbers // 1) == 0 and (numbers[0] < EPOCH or usual < 2e-3)  # frames, all of one second
    if counted or usual < 1e-3 or not (kind.dated or usual <= LONGEST) or not np.diff(numbers).all():
        return None
    return Numbered(f"{_escaped(kind.prefix)}{{:f}}{_escaped(kind.end)}", numbers, [name for *_, name in found])


class _Kind(NamedTuple):
    """What precedes and follows the time in a name, and whether it is a date."""

    prefix: str
    end: str
    dated: bool


def _seconds(name: str) -> tuple[_Kind, float] | None:
    if parts := DATED.fullmatch(name):
        prefix, *numbers, fraction, end = parts.groups()
        with suppress(ValueError):  # no such day
            time = datetime(*map(int, numbers), tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]
            return _Kind(prefix, end, True), time + float(f"0.{fraction or 0}")
    if parts := DECIMAL.fullmatch(name):
        return _Kind(parts[1], parts[3], False), float(parts[2])
    return None


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


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def check_template(template: str) -> None:
    """Raise InputError for a template that has no place for a frame's number."""
    try:
        fits = template.format(1) != template.format(2)
    except (ValueError, LookupError, AttributeError, TypeError):
        fits = False
    if not fits:
        raise InputError(
            f"the imagefile_template is {template!r}; it must have a place for a frame's number, as 'img_{{:05d}}.jpg'"
        )
