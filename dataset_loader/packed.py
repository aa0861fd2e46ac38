"""Packed shards: the frames of many videos as JPEGs in a tar file, which is read at random at the speed of the decoder.

`00000.tar` holds `<video>/<number>.jpg`, frame after frame, as WebDataset has it: `tar` and `webdataset` read it too.
`00000.npz` beside it is the index, plain numpy arrays:

    names bytes [V] · starts int64 [V + 1], into the shard's frames · frames (offset, size, time) [N] · bytes of the tar

A reader fetches the few bytes of `frames` that it needs and never loads the rest, so the memory of a worker does not
depend on the size of the data set. Without its index, or longer or shorter than that says, a shard is not complete.

Legend: V videos in a shard, N frames in a shard, n frames of one video.
"""

import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import InputError
from common.files import write_atomically
from dataset_loader.decoding import DecodeError
from dataset_loader.files import PACKED_SUFFIX as SUFFIX
from dataset_loader.files import index_of
from dataset_loader.images import QUALITY, decode_numbered, encode_jpeg

FRAME = np.dtype([("offset", "<i8"), ("size", "<i4"), ("time", "<f8")])
BLOCK = 512  # bytes: what a tar file consists of


def write_shard(
    path: str | Path, videos: Iterable[tuple[str, Iterable[tuple[np.ndarray, float]]]], *, quality: int = QUALITY
) -> dict[str, str]:
    """Write a shard and its index from (name, frames), a frame being (uint8 RGB [H, W, 3], time in seconds).

    Both iterables are gone through once, so neither videos nor frames need to be in memory. `Video.each_frame()` gives
    frames as they are wanted here. A video whose frames raise DecodeError, are none, or whose clock stands still is
    left out: {name: reason} of these is returned. The same input gives the same bytes. Raises InputError for a name
    that occurs twice or a path without the suffix.
    """
    if Path(path).suffix != SUFFIX:
        raise InputError(f"{path} must end in {SUFFIX}: by that the loader knows a packed shard")
    bad: dict[str, str] = {}
    names: dict[bytes, None] = {}
    starts, rows = [0], list[tuple[int, int, float]]()

    def write(file: BinaryIO) -> None:
        for name, frames in videos:
            key, begin = os.fsencode(name), file.tell()
            if not key or key in names or b"\0" in key:
                raise InputError(f"{path}: the name {name!r} is empty, holds a zero byte, or occurs twice")
            try:
                for number, (image, time) in enumerate(frames):
                    if number and not abs(time - rows[-1][2]) > 0:
                        raise DecodeError(name, f"shows a frame at {time:g} s after one at {rows[-1][2]:g} s")
                    data = encode_jpeg(image, quality)
                    member = tarfile.TarInfo(f"{name.strip('/')}/{number:06d}.jpg")
                    member.size = len(data)
                    file.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
                    rows.append((file.tell(), len(data), float(time)))
                    file.write(data + bytes(-len(data) % BLOCK))
                if len(rows) == starts[-1]:
                    raise DecodeError(name, "has no frame")
            except DecodeError as error:
                bad[name] = error.reason
                del rows[starts[-1] :]
                file.seek(begin)
                continue
            names[key] = None
            starts.append(len(rows))
        file.truncate()
        file.write(bytes(2 * BLOCK))

    write_atomically(path, write)
    index: dict[str, Any] = dict(names=np.array(list(names), dtype=bytes), starts=np.array(starts))
    index |= dict(frames=np.array(rows, dtype=FRAME), bytes=np.int64(os.path.getsize(path)))
    write_atomically(index_of(path), lambda file: np.savez(file, **index))
    return bad


class PackedClip:
    """One video of a shard, opened: its `times`, and `frames` of it. Use it as a context manager."""

    def __init__(self, shard: "Shard", number: int, name: str) -> None:
        self.path = name
        self._rows = shard.rows(number, name)
        self.times = self._rows["time"].copy()  # float64 [n], seconds
        try:
            self._file = os.open(shard.path, os.O_RDONLY)
        except OSError as error:
            raise DecodeError(name, f"its shard cannot be opened ({error.strerror})") from error

    def __enter__(self) -> "PackedClip":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames with these numbers: uint8 RGB [F, H, W, 3], and their times float64 [F] in seconds."""

        def read(number: int) -> bytes:
            offset, size, _ = self._rows[number].item()
            return _read(self._file, offset, size, self.path)

        return decode_numbered(self.path, numbers, read), self.times[numbers]


class Shard:
    """The table of contents of one shard: `names` bytes [V], `starts` int64 [V + 1] into the shard's frames.

    Raises InputError if the file is no complete shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.index = str(path), index_of(path)
        try:
            with open(self.index, "rb") as file, np.load(file) as index, zipfile.ZipFile(file) as members:
                self.names, self.starts, size = index["names"], index["starts"], int(index["bytes"])
                if size != os.path.getsize(self.path):
                    raise ValueError(f"it has {os.path.getsize(self.path)} bytes, its index speaks of {size}")
                file.seek(members.getinfo("frames.npy").header_offset + 26)  # the lengths of a name and of what follows
                file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), os.SEEK_CUR)
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self._begin = file.tell()
            if shape != (self.starts[-1],) or dtype != FRAME or len(self.starts) != len(self.names) + 1:
                raise ValueError("its arrays contradict each other")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is not a complete packed shard ({error}); remove it and its index {self.index}, and prepare "
                "it again"
            ) from error

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, number: int, name: str) -> np.ndarray:
        """The frames of one video, FRAME [n]. name: what a DecodeError names."""
        first, last = (self._begin + int(start) * FRAME.itemsize for start in self.starts[number : number + 2])
        try:
            file = os.open(self.index, os.O_RDONLY)
        except OSError as error:
            raise DecodeError(name, f"the index of its shard cannot be opened ({error.strerror})") from error
        try:
            return np.frombuffer(_read(file, first, last - first, name), FRAME)
        finally:
            os.close(file)

    def open(self, number: int) -> PackedClip:
        """Open one video of the shard."""
        return PackedClip(self, number, f"{self.path}:{os.fsdecode(self.names[number])}")

    def each_name(self) -> Iterator[str]:
        return (os.fsdecode(name) for name in self.names)


def _read(file: int, begin: int, size: int, name: str) -> bytes:
    """Bytes of a file. Read, not mapped: mapped pages stay in the process's memory, and pile up over an epoch."""
    try:
        data = os.pread(file, size, begin)
    except OSError as error:
        raise DecodeError(name, f"its shard cannot be read ({error.strerror})") from error
    if len(data) < size:
        raise DecodeError(name, "its shard has become shorter since it was opened")
    return data
