"""Bringing data sets here: Kinetics-400, DAVIS 2017, or whatever a list of URLs names.

An archive `part_0.tar.gz` becomes the folder `part_0`. Until then all of it lives in `.part_0.unfinished`: its bytes, then
its files and, when these are checked and flushed to the disk, a marker among them; one rename makes the folder appear.
So a folder with a marker is complete, one without is somebody else's and stays untouched, and a program that is killed
at any moment goes on where it was. A URL that is no archive becomes a file, named when it is whole.
"""

import json
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from dataset_loader.archives import SUFFIXES, extract
from dataset_loader.shards import take_shard
from mae.download import download
from mae.files import InputError, write_atomically

KINETICS = "https://s3.amazonaws.com/kinetics/400"
DAVIS = "https://data.vision.ee.ethz.ch/csergi/share/davis"
# 240,258 videos in 242 train parts, 19,881 in 20 val parts, 38,685 in 39 test parts (github.com/cvdfoundation/
# kinetics-dataset); a part has about 1.5 GB.
VIDEOS_PER_PART = 993
MARKER = ".complete.json"
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Item:
    """One URL, and what becomes of it: a file at `target` or, if it is an `archive` of that name, a folder."""

    url: str
    target: Path
    archive: str = ""
    source: str = ""
    """what the marker says the folder was made of: the same for all mirrors"""

    @property
    def unfinished(self) -> Path:
        return self.target.with_name(f".{self.target.name}.unfinished")

    def is_complete(self) -> bool:
        """Whether the folder is there and ours; raises InputError if it is not ours. A file is judged by its bytes."""
        if not self.archive or not os.path.lexists(self.target):
            return False
        try:
            source = json.loads((self.target / MARKER).read_text())["source"]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.target} is there already and was not put there by this program; "
                "move it away, or choose another folder"
            ) from None
        if source != self.source:
            raise InputError(f"{self.target} holds the files of {source}, not of {self.source}; choose another folder")
        return True

    def arrived(self) -> int:
        """How many bytes of the URL are on the disk so far."""
        whole = self.unfinished / self.archive if self.archive else self.target
        for path in (whole, whole.with_name(f"{whole.name}.part")):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                pass
        return 0


def download_kinetics(
    out: str | Path,
    videos: int | Literal["all"],
    splits: Sequence[Split] = ("train", "val"),
    base_url: str = KINETICS,
    **options: Any,
) -> None:
    """Bring about `videos` videos of Kinetics-400 to `out/<split>/part_<k>/`, and the annotations to `out/annotations/`.

    Whole parts of about 993 videos are fetched, at least one of each split, spread evenly over all that the server
    lists; the parts of a smaller number are always among those of a larger one. `options` are those of `fetch`.
    """
    if videos != "all" and videos < 1:
        raise InputError(f"{videos} videos were asked for; it must be at least 1, or all")
    out, base_url = Path(out), base_url.rstrip("/")
    names = {}
    for split in dict.fromkeys(splits):
        listing = out / "annotations" / f"k400_{split}_path.txt"
        download(f"{base_url}/{split}/{listing.name}", listing, check=_part_names, progress=False)
        names[split] = _part_names(listing)
    total = sum(map(len, names.values()))
    share = 1.0 if videos == "all" else videos / VIDEOS_PER_PART / total
    items = [Item(f"{base_url}/annotations/{split}.csv", out / "annotations" / f"{split}.csv") for split in names]
    for split, parts in names.items():
        chosen = [parts[k] for k in spread(len(parts), max(1, round(share * len(parts))))]
        print(f"{split}: {len(chosen)} of {len(parts)} parts, about {len(chosen) * VIDEOS_PER_PART:,} videos")
        for name in chosen:
            source = f"{KINETICS}/{split}/{name}"
            items.append(Item(f"{base_url}/{split}/{name}", out / split / folder_name(name), name, source))
    fetch(items, **options)


def download_davis(out: str | Path, base_url: str = DAVIS, **options: Any) -> None:
    """Bring DAVIS 2017 (trainval, 480p) to `out/DAVIS`; `options` are those of `fetch`."""
    name = "DAVIS-2017-trainval-480p.zip"
    fetch([Item(f"{base_url.rstrip('/')}/{name}", Path(out) / "DAVIS", name, f"{DAVIS}/{name}")], **options)


def download_list(file: str | Path, out: str | Path, **options: Any) -> None:
    """Bring what the URLs in a text file name to `out`: archives become folders, all else files.

    A line is a URL, and after a blank the name to give to it, if not its own; `#` begins a comment. Two lines that
    would get the same name are refused. `options` are those of `fetch`.
    """
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of URLs: {error}") from error
    taken: dict[Path, tuple[int, Item]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        url = urlsplit(words[0])
        name = PurePosixPath(" ".join(words[1:]) or unquote(url.path)).name
        given = " ".join(words[1:])
        if url.scheme not in ("http", "https") or not url.netloc:
            raise InputError(f"{file}, line {number}: {words[0]!r} is no http or https URL")
        if not name or name.startswith(".") or "\0" in name or (given and given != name):
            raise InputError(f"{file}, line {number}: no file can be named {given or name!r}; add a name after the URL")
        folder = folder_name(name)
        source = url._replace(query="", fragment="").geturl()  # a query may hold a secret, and changes
        item = Item(words[0], Path(out) / (folder or name), name if folder else "", source)
        first, other = taken.setdefault(item.target, (number, item))
        if other != item:
            raise InputError(
                f"{file}: lines {first} and {number} would both become {item.target}; "
                "add another name after the URL of one of them"
            )
    if not taken:
        raise InputError(f"{file} names no URL")
    fetch([item for _, item in taken.values()], **options)


def fetch(
    items: Sequence[Item],
    *,
    jobs: int = 4,
    shard: str = "1/1",
    keep_archives: bool = False,
    retries: int = 8,
    backoff: float = 1.0,
) -> None:
    """Bring all `items` of this `shard` here, `jobs` at a time; what is here already is not fetched again.

    One that fails is tried again when all others are through, then named in an `InputError`; everything else is
    complete by then. `retries` in a row, after `backoff`, 2 `backoff`, 4 `backoff` … seconds, bridge a bad connection.
    With `keep_archives` an archive stays beside its folder. Raises `InputError` before the first byte if something of
    the user's is in the way or the disk is too small.
    """
    from tqdm import tqdm

    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    mine = take_shard(items, shard)
    todo = [item for item in mine if not item.is_complete() or item.unfinished.exists()]
    sizes = _sizes(todo, jobs)
    _refuse_full_disk(todo, sizes, jobs, keep_archives)

    def bring(item: Item) -> None:
        _bring(item, sizes[item], keep_archives, retries=retries, backoff=backoff, progress=False)

    total = None if None in sizes.values() else sum(size or 0 for size in sizes.values())
    failed: dict[Item, InputError] = {}
    with tqdm(
        total=total, initial=sum(item.arrived() for item in todo), unit="B", unit_scale=True, file=sys.stdout,
        mininterval=0.5 if sys.stdout.isatty() else 30, disable=not todo,
    ) as bar:  # fmt: skip
        def show(active: Sequence[Item], through: Sequence[Item]) -> None:
            whole = [item for item in through if item not in failed]
            bar.set_description(f"{len(mine) - len(todo) + len(whole)} of {len(mine)} complete", refresh=False)
            bar.update(sum(sizes[item] or 0 for item in through) + sum(item.arrived() for item in active) - bar.n)

        failed = _in_parallel(bring, todo, jobs, show)
        if failed and len(failed) < len(todo):
            failed = _in_parallel(bring, list(failed), jobs, show)
    if failed:
        raise InputError(_what_failed(failed, len(mine)))
