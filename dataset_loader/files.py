"""Which files a dataset reads: finding what lies below a folder, and holding some videos out."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError
from common.files import is_hidden

# fmt: off
SUFFIXES = {
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv",
}
# fmt: on


IMAGE_SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
PACKED_SUFFIX = ".tar"
NUMBERED = re.compile(r"(.*?)(\d+)(\.[^.]+)", re.DOTALL)
# A folder whose first entries are all numbered pictures holds nothing else: reading all of them, in 240,000 folders,
# would take minutes.
ENTRIES_LOOKED_AT = 16


class Names(Sequence[str]):
    """A list of strings in two blocks of memory: a quarter of a million paths take 20 MB and no time to copy."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0] + [len(name) for name in encoded])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return os.fsdecode(self._text[self._ends[number] : self._ends[number + 1]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({self[:3]}{' …' if len(self) > 3 else ''}, {len(self)})"


class Found(NamedTuple):
    """What lies below a folder: packed shards, video files, folders of numbered pictures, and folders of masks.

    Masks are `Annotations` beside `JPEGImages`: what DAVIS and YouTube-VOS call their masks and their frames.
    """

    shards: list[str]
    videos: list[str]
    folders: list[str]
    masks: list[str]


def index_of(shard: str | Path) -> str:
    """Where the index of a packed shard lies."""
    return os.fspath(Path(shard).with_suffix(".npz"))


def search(top: str) -> Found:
    """Look through a folder to its depths, links followed and hidden names left out; each list is sorted.

    Tar files are shards where at least one of a folder has an index beside it.
    """
    found = Found([], [], [], [])
    entered = {os.path.realpath(top)}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            looked_at = list(islice(entries, ENTRIES_LOOKED_AT))
            if any(map(_is_picture, looked_at)):
                found.folders.append(folder)
            if len(looked_at) == ENTRIES_LOOKED_AT and all(map(_is_picture, looked_at)):
                continue
            looked_at += entries
        names = {entry.name for entry in looked_at}
        has_frames = "JPEGImages" in names
        tars = {name for name in names if name.endswith(PACKED_SUFFIX) and not is_hidden(name)}
        if any(index_of(name) in names for name in tars):
            found.shards.extend(os.path.join(folder, name) for name in tars)
        for entry in looked_at:
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_hidden(entry.name):
                continue
            if has_frames and entry.name.startswith("Annotations"):
                found.masks.append(entry.path)
            elif suffix in SUFFIXES and not entry.is_dir():
                found.videos.append(entry.path)
            elif suffix not in IMAGE_SUFFIXES and entry.is_dir():
                # A link back to a folder above would never end.
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if real not in entered:
                    entered.add(real)
                    waiting.append(entry.path)
    return Found(*map(sorted, found))


def _is_picture(entry: os.DirEntry[str]) -> bool:
    parts = NUMBERED.fullmatch(entry.name)
    return parts is not None and parts[3].lower() in IMAGE_SUFFIXES and entry.name[0] != "."


def find_videos(source: str | Path | Iterable[str | Path]) -> list[str]:
    """The video files below a folder, links followed and hidden names left out, or of a list; sorted, not opened.

    A single video is a list of one. A list holds files, or folders, which are searched. Raises InputError if the
    folder or something listed is missing or lies in another, or nothing is found.
    """
    if not isinstance(source, str | Path):
        files, folders = files_and_folders(source)
        return sorted([*files, *(path for folder in folders for path in find_videos(folder))])
    if is_video(source):
        return [str(source)]
    if not os.path.isdir(source):
        raise InputError(f"{source} is not a folder or a video; give a folder of videos, or a list of files")
    found = search(str(source))
    if not found.videos:
        others = f"; {found.folders[0]} holds pictures, which need none of this" if found.folders else ""
        raise InputError(f"{source} holds no video (looked below it for {' '.join(sorted(SUFFIXES))}){others}")
    return found.videos


def is_video(path: str | Path) -> bool:
    """Whether this is a file whose name is that of a video."""
    return Path(path).suffix.lower() in SUFFIXES and os.path.isfile(path)


def files_and_folders(listed: Iterable[str | Path]) -> tuple[list[str], list[str]]:
    """The files and the folders of a list, each sorted. Raises InputError if one is missing or lies in another."""
    paths = sorted({str(path) for path in listed})
    if not paths:
        raise InputError("the list of videos is empty")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise InputError(f"{missing[0]} does not exist ({len(missing)} of the {len(paths)} listed videos)")
    folders = [path for path in paths if os.path.isdir(path)]
    if not folders:
        return paths, []
    # Sorted by their parts, what lies in a folder follows it.
    resolved = sorted((Path(path).resolve().parts, path) for path in paths)
    for (outer, folder), (inner, path) in pairwise(resolved):
        if inner[: len(outer)] == outer:
            raise InputError(f"{path} lies in {folder}: its videos would be there twice; list one of the two")
    return sorted(set(paths) - set(folders)), folders


def video_id(path: str) -> str:
    """What names a video: its file's or folder's name without the suffix of a video, and without the times that
    Kinetics adds (`<id>_000010_000020`)."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    return re.sub(r"(?<=.)_\d{6}_\d{6}$", "", stem if suffix.lower() in SUFFIXES else stem + suffix)


def hold_out(
    paths: Sequence[str | Path], share: float, families: Iterable[str] = ()
) -> tuple[list[str | Path], list[str | Path]]:
    """Split videos into (train, held out): a `share` of them by a hash of the name, and whole `families`.

    A video stays on its side whatever other files come or go, and in whatever container it is. Its family is what
    precedes the first `_` of its name.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share to hold out is {share}; it must be at least 0 and below 1")
    families = set(families)
    unknown = families - {_family(path) for path in paths}
    if unknown:
        raise InputError(f"no video is of the family {', '.join(sorted(unknown))}, which is to be held out")
    train: list[str | Path] = []
    held_out: list[str | Path] = []
    for path in paths:
        digest = hashlib.blake2b(Path(path).stem.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        held = _family(path) in families or int.from_bytes(digest) < share * 2**64
        (held_out if held else train).append(path)
    return train, held_out


def _family(path: str | Path) -> str:
    return Path(path).stem.split("_")[0]
