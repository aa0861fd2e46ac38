"""Which files a dataset reads: finding videos below a folder, and keeping training and test apart."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mae.files import InputError

# fmt: off
SUFFIXES = {
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv",
}
# fmt: on


def find_videos(source: str | Path | Iterable[str | Path]) -> list[str]:
    """The video files below a folder, links followed and hidden names left out, or those of a list; sorted, not opened.

    Raises InputError if the folder or a listed file is missing, or nothing is found.
    """
    if not isinstance(source, str | Path):
        paths = sorted({str(path) for path in source})
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            raise InputError(f"{missing[0]} does not exist ({len(missing)} of the {len(paths)} listed videos)")
        if not paths:
            raise InputError("the list of videos is empty")
        return paths
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


def check_disjoint(train: str | Path, test: str | Path) -> None:
    """Raise InputError if one of two folders of videos lies in the other, or a file is in both (links count)."""
    folders = [Path(train).resolve(), Path(test).resolve()]
    for inner, outer in (folders, folders[::-1]):
        if inner.is_relative_to(outer):
            raise InputError(f"{inner} lies in {outer}: training would see the test videos; give separate folders")
    seen = {_inode(path): path for path in find_videos(train)}
    for path in find_videos(test):
        if _inode(path) in seen:
            raise InputError(f"{path} and {seen[_inode(path)]} are one file: training would see a test video")


def _family(path: str | Path) -> str:
    return Path(path).stem.split("_")[0]


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
