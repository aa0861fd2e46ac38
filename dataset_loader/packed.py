"""Packed shards: the frames of many videos as JPEGs in one file, which is read at random at the speed of the decoder.

A shard is written once, from front to back, and appears under its name when it is complete:

    JPEGs, one after the other | names | starts | offsets | times | positions of these four, int64 [4] | MAGIC

The four are plain .npy arrays; a reader fetches the few bytes of them that it needs and never maps or loads the rest,
so the memory of a worker does not depend on the size of the data set.

Legend: V videos in a shard, N frames in a shard, n frames of one video.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import InputError
from common.files import write_atomically
from dataset_loader.decoding import DecodeError
from dataset_loader.images import QUALITY, decode_numbered, encode_jpeg

SUFFIX = ".shard"
MAGIC = b"SiamJPG1"
PARTS = ("names", "starts", "offsets", "times")
FOOTER = 8 * len(PARTS) + len(MAGIC)


def write_shard(
    path: str | Path, videos: Iterable[tuple[str, Iterable[tuple[np.ndarray, float]]]], *, quality: int = QUALITY
) -> dict[str, str]:
    """Write a shard from (name, its frames), a frame being (uint8 RGB [H, W, 3], presentation time in seconds).

    Both iterables are gone through once, so neither videos nor frames need to be in memory. `Video.each_frame()` gives
    frames as they are wanted here. A video whose frames raise DecodeError, are none, or whose times do not increase is
    left out: {name: reason} of these is returned. The same input gives the same bytes. Raises InputError for a name
    that occurs twice or a path without the suffix.
    """
    if Path(path).suffix != SUFFIX:
        raise InputError(f"{path} must end in {SUFFIX}: by that the loader knows a packed shard")
    bad: dict[str, str] = {}

    def write(file: BinaryIO) -> None:
        names: dict[bytes, None] = {}
        starts, offsets, times = [0], [0], list[float]()
        for name, frames in videos:
            key = os.fsencode(name)
            if not key or key in names or b"\0" in key:
                raise InputError(f"{path}: the name {name!r} is empty, holds a zero byte, or occurs twice")
            try:
                for image, time in frames:
                    if len(times) > starts[-1] and time <= times[-1]:
                        raise DecodeError(name, f"shows a frame at {time:g} s after one at {times[-1]:g} s")
                    file.write(encode_jpeg(image, quality))
                    offsets.append(file.tell())
                    times.append(float(time))
                if len(times) == starts[-1]:
                    raise DecodeError(name, "has no frame")
            except DecodeError as error:
                bad[name] = error.reason
                del times[starts[-1] :], offsets[starts[-1] + 1 :]
                file.seek(offsets[-1])
                continue
            names[key] = None
            starts.append(len(times))
        file.truncate()
        parts = np.array(list(names), dtype=bytes), np.array(starts), np.array(offsets), np.array(times, dtype=float)
        positions = []
        for part in parts:
            positions.append(file.tell())
            np.lib.format.write_array(file, np.asarray(part), version=(1, 0), allow_pickle=False)
        file.write(np.array(positions, dtype="<i8").tobytes() + MAGIC)

    write_atomically(path, write)
    return bad


class PackedClip:
    """One video of a shard, opened: its `times`, and `frames` of it. Use it as a context manager."""

    def __init__(self, shard: "Shard", number: int, name: str) -> None:
        self.path = name
        self._shard = shard
        self._first, self._last = (int(start) for start in shard.starts[number : number + 2])
        try:
            self._file = os.open(shard.path, os.O_RDONLY)
        except OSError as error:
            raise DecodeError(self.path, f"its shard cannot be opened ({error.strerror})") from error
        self.times = self._read("times", self._first, self._last)  # float64 [n], seconds

    def __enter__(self) -> "PackedClip":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames with these numbers: uint8 RGB [F, H, W, 3], and their times float64 [F] in seconds."""
        offsets = self._read("offsets", self._first, self._last + 1).tolist()
        images = decode_numbered(self.path, numbers, lambda n: self._bytes(offsets[n], offsets[n + 1]))
        return images, self.times[numbers]

    def _read(self, part: str, first: int, last: int) -> np.ndarray:
        """Entries first…last − 1 of one of the shard's arrays."""
        begin, dtype, _ = self._shard.parts[part]
        data = self._bytes(begin + first * dtype.itemsize, begin + last * dtype.itemsize)
        return np.frombuffer(data, dtype)

    def _bytes(self, begin: int, end: int) -> bytes:
        # Read, not mapped: mapped pages stay in the process's memory, and pile up over an epoch.
        try:
            data = os.pread(self._file, end - begin, begin)
        except OSError as error:
            raise DecodeError(self.path, f"its shard cannot be read ({error.strerror})") from error
        if len(data) < end - begin:
            raise DecodeError(self.path, "its shard has become shorter since it was opened")
        return data


class Shard:
    """The table of contents of one shard: `names` bytes [V], `starts` int64 [V + 1] into the shard's frames.

    parts: for each array where its values begin in the file, their type and their number. Raises InputError if the
    file is no complete shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            with open(self.path, "rb") as file:
                self._read(file)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is not a complete packed shard ({error}); remove it and prepare it again"
            ) from error

    def _read(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - FOOTER))
        footer = file.read(FOOTER)
        if len(footer) < FOOTER or footer[-len(MAGIC) :] != MAGIC:
            raise ValueError("its last bytes are not those of a shard")
        self.parts: dict[str, tuple[int, np.dtype[Any], int]] = {}
        for name, position in zip(PARTS, np.frombuffer(footer[: -len(MAGIC)], dtype="<i8").tolist(), strict=True):
            if not 0 <= position < size:
                raise ValueError(f"the position of its {name} lies outside the file")
            file.seek(position)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if len(shape) != 1 or dtype.hasobject:
                raise ValueError(f"its {name} are not a plain list")
            self.parts[name] = file.tell(), dtype, shape[0]
            if name in ("names", "starts"):
                file.seek(position)
                setattr(self, name, np.lib.format.read_array(file, allow_pickle=False))
        videos, frames = self.parts["names"][2], self.parts["times"][2]
        if (self.parts["starts"][2], self.parts["offsets"][2]) != (videos + 1, frames + 1) or self.starts[-1] != frames:
            raise ValueError("its arrays contradict each other")

    names: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return os.fsdecode(self.names[number])

    def open(self, number: int) -> PackedClip:
        """Open one video of the shard."""
        return PackedClip(self, number, f"{self.path}:{self.name(number)}")

    def each_name(self) -> Iterator[str]:
        return (os.fsdecode(name) for name in self.names)
