"""Where frames come from: video files, folders of pictures, packed shards or a ledger, all behind one interface.

A `Source` knows the names of its videos and opens one of them; what it opens is a `Clip`, which states the time of each
frame and decodes chosen ones. `open_source` finds out what a folder holds.

Legend: V videos of a source, N frames of a clip, n chosen frames.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import InputError
from common.words import counted
from dataset_loader.decoding import Video
from dataset_loader.files import (
    IMAGE_SUFFIXES,
    PACKED_SUFFIX,
    SUFFIXES,
    Names,
    files_and_folders,
    find_videos,
    is_video,
    search,
)
from dataset_loader.frame_folders import FrameClip, check_template
from dataset_loader.ledger import Ledger
from dataset_loader.lists import read_list
from dataset_loader.packed import Shard
from dataset_loader.pictures import Picture, find_pictures

LEDGERS = ("ledger.csv", "ledger.txt")


class Clip(Protocol):
    """An opened video; a context manager.

    One of whose times only the order is known, as of numbered pictures, has `assumed = True` besides.
    """

    @property
    def path(self) -> str: ...

    @property
    def times(self) -> np.ndarray:
        """float64 [N], seconds, increasing."""
        ...

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode frames by number: uint8 RGB [n, H, W, 3] and their times [n]. Raises DecodeError."""
        ...

    def __enter__(self) -> "Clip": ...

    def __exit__(self, *_: object) -> None: ...


class Source(Protocol):
    """Many videos. It is copied into every process that decodes, so it holds arrays, not objects."""

    @property
    def names(self) -> Sequence[str]: ...

    def open(self, number: int) -> Clip:
        """Open one video; raises DecodeError with its name if that cannot be done."""
        ...

    def __str__(self) -> str:
        """What it is, in a few words, for people."""
        ...


class VideoFiles:
    """Video files as they are; see `decoding`. said: of the list that they come from."""

    def __init__(self, paths: Iterable[str], said: str = "") -> None:
        self.names = Names(paths)
        self.said = said

    def open(self, number: int) -> Clip:
        return Video(self.names[number])

    def __str__(self) -> str:
        return f"{counted(len(self.names), 'video file')}{self.said}"


class FrameFolders:
    """Folders of numbered pictures; see `frame_folders`. fps: their rate where no times are beside them.

    masks: folders of masks that were found and left out. template: which of a folder's pictures, "img_{:05d}.jpg".
    """

    def __init__(
        self, folders: Iterable[str], fps: float = 30, masks: Sequence[str] = (), template: str | None = None
    ) -> None:
        if template is not None:
            check_template(template)
        self.names = Names(folders)
        self.fps = fps
        self.masks = masks
        self.template = template

    def open(self, number: int) -> Clip:
        return FrameClip(self.names[number], self.fps, self.template)

    def __str__(self) -> str:
        without = f" without the masks in {', '.join(self.masks)}" if self.masks else ""
        folders = counted(len(self.names), "folder")
        return f"{folders} of pictures{without}, at fps={self.fps:g} where nothing tells their times"


class PackedShards:
    """Packed shards; see `packed`."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.shards = [Shard(path) for path in paths]
        if not any(map(len, self.shards)):
            raise InputError(f"{self.shards[0].path} holds no video ({len(self.shards)} such packed shards)")
        self._ends = np.cumsum([len(shard) for shard in self.shards])
        self.names = Names(f"{shard.path}:{name}" for shard in self.shards for name in shard.each_name())

    def open(self, number: int) -> Clip:
        row = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.shards[row]
        return shard.open(number - int(self._ends[row]) + len(shard))

    def __str__(self) -> str:
        return f"{counted(len(self.names), 'video')} in {counted(len(self.shards), 'packed shard')}"


class PictureFiles:
    """Single pictures, of which one-frame pairings make pairs; see `pictures`. Folders are searched, files listed."""

    def __init__(self, where: str | Path | Iterable[str | Path]) -> None:
        files, folders = files_and_folders([where] if isinstance(where, str | Path) else where)
        found = sorted([*files, *(path for folder in folders for path in find_pictures(folder))])
        if not found:
            raise InputError(
                f"{', '.join(folders)} holds no picture (looked below it for {' '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.names = Names(found)
        self.stills = len(found)

    def open(self, number: int) -> Clip:
        return Picture(self.names[number])

    def __str__(self) -> str:
        return counted(len(self.names), "picture")


class WithPictures:
    """Videos and single pictures as one source, the videos first."""

    def __init__(self, videos: Source, pictures: PictureFiles) -> None:
        self.videos, self.pictures = videos, pictures
        self.names = Names([*videos.names, *pictures.names])
        self.stills = pictures.stills

    def open(self, number: int) -> Clip:
        count = len(self.videos.names)
        return self.videos.open(number) if number < count else self.pictures.open(number - count)

    def __str__(self) -> str:
        return f"{self.videos} and {self.pictures}"


# What `--data NAME:PLACE` opens, whatever else the place holds. To add a data set, write its `Source` and a line here.
SOURCES: dict[str, Callable[[str], Source]] = {
    "videos": lambda place: VideoFiles(find_videos(place)),
    "pictures": PictureFiles,
}


def open_source(where: str | Path | Iterable[str | Path], *, fps: float = 30, template: str | None = None) -> Source:
    """The videos of a folder, of one ledger or shard, a single video, or a list of files or folders of one kind.

    A folder is searched to its depths, links followed and hidden names left out. Where it holds several kinds, packed
    shards come before a ledger, that before video files, those before folders of pictures. A list may also be a text
    file (see `lists`). fps: the rate of pictures without times. template: which pictures of a folder that holds several
    kinds, such as "img_{:05d}.jpg". `NAME:PLACE` takes the one of `SOURCES`. Raises InputError if something is missing
    or lies in another, or nothing is found.
    """
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; it must be above 0 and at most 1000")
    if not isinstance(where, str | Path):
        return _open_list(where, fps, template)
    name, _, place = str(where).partition(":")
    if name in SOURCES and not os.path.exists(where):
        return SOURCES[name](place)
    if os.path.isfile(where):
        if str(where).endswith(PACKED_SUFFIX):
            return PackedShards([str(where)])
        if Path(where).suffix in (".csv", ".txt"):
            if listed := read_list(where):
                return _open_list(listed[0], fps, template, listed[1])
            return Ledger(Path(where).parent, where, template=template, fps=fps)
        if is_video(where):
            return VideoFiles([str(where)])
    if not os.path.isdir(where):
        raise InputError(f"{where} is not a folder or a video; give a folder of videos, a ledger, or a list of files")
    shards, videos, folders, masks = search(str(where))
    if shards:
        return PackedShards(shards)
    for name in LEDGERS:
        if os.path.exists(os.path.join(where, name)):
            return Ledger(where, os.path.join(where, name), template=template, fps=fps)
    if not videos and not folders:
        if find_pictures(where):
            return PictureFiles(where)
        raise InputError(
            f"{where} holds no video: looked below it for {' '.join(sorted(SUFFIXES))}, packed shards "
            f"({PACKED_SUFFIX}), a ledger ({', '.join(LEDGERS)}), folders of numbered pictures, and single pictures"
        )
    return VideoFiles(videos) if videos else FrameFolders(folders, fps, masks, template)


def _open_list(where: Iterable[str | Path], fps: float, template: str | None, said: str = "") -> Source:
    files, folders = files_and_folders(where)
    packed = [path for path in files if path.endswith(PACKED_SUFFIX)]
    if packed and len(packed) < len(files):
        raise InputError(f"the list mixes packed shards ({packed[0]}) with other files; give one kind")
    sources = [open_source(folder, fps=fps, template=template) for folder in folders]
    if files:
        sources.append(PackedShards(files) if packed else VideoFiles(files, said))
    if len(sources) == 1:
        return sources[0]
    kinds = {type(source) for source in sources}
    if kinds == {PackedShards}:
        of_shards = [source for source in sources if isinstance(source, PackedShards)]
        return PackedShards(sorted(shard.path for source in of_shards for shard in source.shards))
    names = sorted(name for source in sources for name in source.names)
    if kinds == {VideoFiles}:
        return VideoFiles(names, said)
    if kinds == {FrameFolders}:
        return FrameFolders(names, fps, template=template)
    raise InputError(f"the list mixes {', '.join(map(str, sources[:3]))}: give one kind, and a ledger by itself")
