"""Which files a dataset reads: finding videos below a folder, and holding some of them out."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from common.errors import InputError

# fmt: off
SUFFIXES = {
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv",
}
# fmt: on


def find_videos(source: str | Path | Iterable[str | Path]) -> list[str]:
    """The video files below a folder, links followed and hidden names left out, or of a list; sorted, not opened.

    A list holds files, or folders, which are searched. Raises InputError if the folder or something listed is missing
    or lies in another, or nothing is found.
    """
    if not isinstance(source, str | Path):
        files, folders = files_and_folders(source)
        return sorted([*files, *(path for folder in folders for path in find_videos(folder))])
    if not os.path.isdir(source):
        raise InputError(f"{source} is not a folder; give a folder of videos, or a list of files")
    paths = []
    entered = set()
    for folder, below, names in os.walk(source, followlinks=True):
        entered.add(os.path.realpath(folder))
        # A link back to a folder above would never end.
        below[:] = [n for n in below if n[0] != "." and os.path.realpath(os.path.join(folder, n)) not in entered]
        paths += [os.path.join(folder, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{source} holds no video (looked below it for {' '.join(sorted(SUFFIXES))})")
    return sorted(paths)


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
