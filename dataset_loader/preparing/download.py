"""Data sets from the network: Kinetics-400, DAVIS, VIP, JHMDB, TAP-Vid, KITTI-STEP, and whatever a list of URLs names.

An archive `part_0.tar.gz` becomes the folder `part_0`. Until then all of it is in `.part_0.unfinished`: its bytes, then
its files and, when these are checked and flushed to the disk, a marker among them; one rename makes the folder appear.
So a folder with a marker is complete, and one without it belongs to someone else and stays untouched. A URL that is no
archive becomes a file, which gets its name once it is complete. After a kill, the same command resumes.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from common.download import download
from common.errors import InputError
from common.files import flush, locked, read_text, write_atomically
from dataset_loader.preparing.archives import extract, folder_name
from dataset_loader.preparing.jobs import take_shard

KINETICS = "https://s3.amazonaws.com/kinetics/400"
# 240,258 videos in 242 train parts, 19,881 in 20 of val, 38,685 in 39 of test, about 1.5 GB each
# (https://github.com/cvdfoundation/kinetics-dataset, arrange_by_classes.py and the lists that its README names)
VIDEOS_PER_PART = 993
Split = Literal["train", "val", "test"]
# Data sets that are one archive. KITTI-STEP is its panoptic maps: the pictures are KITTI's own, behind a registration.
ARCHIVES = {
    "davis": "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
    "vip": "https://storage.googleapis.com/representations4d/datasets/VIP.zip",
    "jhmdb": "https://storage.googleapis.com/representations4d/datasets/jhmdb.zip",
    "tapvid_davis": "https://storage.googleapis.com/dm-tapnet/tapvid_davis.zip",
    "tapvid_rgb_stacking": "https://storage.googleapis.com/dm-tapnet/tapvid_rgb_stacking.zip",
    "tapvid_kinetics": "https://storage.googleapis.com/dm-tapnet/tapvid_kinetics.zip",
    "robotap": "https://storage.googleapis.com/dm-tapnet/robotap/robotap.zip",
    "kitti_step": "https://storage.googleapis.com/gresearch/tf-deeplab/data/kitti-step.tar.gz",
}
FOLDERS = {"davis": "DAVIS"}  # where the folder is not called as its archive
MARKER = ".complete.json"
GIVE_UP = 20  # failures in a row


def download_kinetics(
    out: str | Path,
    videos: int | Literal["all"],
    splits: Sequence[Split] = ("train", "val"),
    base_url: str = KINETICS,
    **options: Any,
) -> None:
    """Bring about `videos` videos of Kinetics-400 to `out/<split>/part_<k>/`, and `out/annotations/<split>.csv`.

    Whole parts of about 993 videos are fetched, at least one of each split, spread evenly over all that the server
    lists; those for a smaller number are always among those for a larger one. `options` are those of `fetch`.
    """
    if videos != "all" and videos < 1:
        raise InputError(f"{videos} videos were asked for; it must be at least 1, or all")
    if not splits:
        raise InputError("no split was named; there are train, val and test")
    out, base_url = Path(out), base_url.rstrip("/")
    parts = {}
    for split in dict.fromkeys(splits):
        listing = out / "annotations" / f"k400_{split}_path.txt"
        download(f"{base_url}/{split}/{listing.name}", listing, check=_part_names, progress=False, say=print)
        parts[split] = _part_names(listing)
    items = [Item(f"{base_url}/annotations/{split}.csv", out / "annotations" / f"{split}.csv") for split in parts]
    share = 1.0 if videos == "all" else videos / VIDEOS_PER_PART / sum(map(len, parts.values()))
    for split, names in parts.items():
        chosen = [names[k] for k in spread(len(names), max(1, round(share * len(names))))]
        print(f"{split}: {len(chosen)} of {len(names)} parts, about {len(chosen) * VIDEOS_PER_PART:,} videos")
        for name in chosen:
            source = f"{KINETICS}/{split}/{name}"
            items.append(Item(f"{base_url}/{split}/{name}", out / split / folder_name(name), name, source))
    fetch(items, **options)


def download_archive(name: str, out: str | Path, base_url: str | None = None, **options: Any) -> None:
    """Bring one of `ARCHIVES` to a folder in `out`; base_url: a mirror's folder. `options` are those of `fetch`."""
    source = ARCHIVES[name]
    archive = source.rpartition("/")[2]
    url = source if base_url is None else f"{base_url.rstrip('/')}/{archive}"
    fetch([Item(url, Path(out) / FOLDERS.get(name, folder_name(archive)), archive, source)], **options)


def download_list(file: str | Path, out: str | Path, **options: Any) -> None:
    """Bring what the URLs in a text file name to `out`: archives become folders, everything else files.

    A line is a URL and, if it shall not keep its name, a blank and another name; `#` begins a comment. Two lines that
    would become the same are refused. `options` are those of `fetch`.
    """
    taken: dict[Path, tuple[int, Item]] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        item = _listed(line, Path(out), f"{file}, line {number}")
        first, other = taken.setdefault(item.target, (number, item))
        if other != item:
            raise InputError(
                f"{file}: lines {first} and {number} would both become {item.target}; "
                "add another name after the URL of one of them"
            )
    if not taken:
        raise InputError(f"{file} names no URL")
    fetch([item for _, item in taken.values()], **options)


@dataclass(frozen=True)
class Item:
    """One URL, and what becomes of it: the file `target` or, if it is an `archive` of that name, a folder there.

    source: for the marker, what the folder was made of, the same for all mirrors.
    """

    url: str
    target: Path
    archive: str = ""
    source: str = ""

    @property
    def unfinished(self) -> Path:
        return self.target.with_name(f".{self.target.name}.unfinished")

    def is_complete(self) -> bool:
        """Whether the folder is there; raises `InputError` if it is not ours. A file is for its bytes to judge."""
        if not self.archive or not os.path.lexists(self.target):
            return False
        try:
            source = json.loads((self.target / MARKER).read_text())["source"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.target} is there already, without the marker of this program; "
                "move it away, or choose another folder"
            ) from None
        if source != self.source:
            raise InputError(f"{self.target} was made of {source}, not of {self.source}; choose another folder")
        return True

    def arrived(self) -> int:
        """How many bytes of the URL are on the disk."""
        whole = self.unfinished / self.archive if self.archive else self.target
        for path in (whole, whole.with_name(f"{whole.name}.part")):
            if path.exists():
                return path.stat().st_size
        return 0


def fetch(
    items: Sequence[Item],
    *,
    jobs: int = 4,
    shard: str = "1/1",
    keep_archives: bool = False,
    retries: int = 8,
    backoff: float = 1.0,
) -> None:
    """Bring all `items` of this `shard` here, `jobs` at a time; what is complete already is not fetched again.

    A bad connection is tried again as `download` does. What fails for good gets a second chance when all else is
    through; then an `InputError` names it, and all else is complete. With `keep_archives` an archive stays beside its
    folder. If something of the user's is in the way, or the disk is too small, an `InputError` says so before anything
    is fetched.
    """
    from tqdm import tqdm

    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    mine = take_shard(items, shard)
    todo = [item for item in mine if not item.is_complete() or item.unfinished.exists()]
    before = len(mine) - len(todo)
    print(f"{before} of {len(mine)} complete, {len(todo)} to fetch")
    sizes, arrived = _sizes(todo), sum(item.arrived() for item in todo)
    # Items of unknown size are taken to be like the others.
    total = round(sum(sizes.values()) * len(todo) / len(sizes)) if sizes else None
    if total:
        _refuse_full_disk(total - arrived, sizes, None if keep_archives else jobs)
    for folder in {item.target.parent for item in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder} is no folder that can be written to ({error.strerror})") from error
    missing: dict[Item, InputError | None] = dict.fromkeys(todo)
    with (
        tqdm(
            desc=f"{before} of {len(mine)} complete", total=total, initial=arrived, unit="B", unit_scale=True,
            mininterval=0.5 if sys.stdout.isatty() else 30, file=sys.stdout, disable=not todo,
        ) as bar,
        ThreadPool(jobs) as pool,  # its threads are daemons: Ctrl-C ends the program at once, as safely as any kill
    ):  # fmt: skip

        def bring(item: Item) -> tuple[Item, InputError | None]:
            def say(message: str) -> None:
                if not bar.disable:  # as it is once closed
                    bar.write(f"{item.target.parent.name}/{message}")  # part_0 is a name in each split

            patience = dict(retries=retries, backoff=backoff, say=say, count=bar.update, progress=False)
            try:
                _bring(item, keep_archives, expected_size=sizes.get(item), **patience)
            except InputError as error:
                return item, error
            return item, None

        for words in ("; tried again in the end", ""):
            in_a_row = 0
            for item, failure in pool.imap_unordered(bring, list(missing)):
                if failure is None:
                    in_a_row = 0
                    del missing[item]
                    bar.set_description(f"{len(mine) - len(missing)} of {len(mine)} complete", refresh=False)
                    continue
                bar.write(f"{failure}{words}")
                missing[item] = failure
                if (in_a_row := in_a_row + 1) == GIVE_UP:
                    break
            else:
                continue
            break
    if missing:
        start = f"{len(missing)} of {len(mine)} failed, the same command tries them again: " if len(mine) > 1 else ""
        said = [str(error or f"not tried, after {GIVE_UP} failures in a row") for error in missing.values()]
        raise InputError(start + "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if said[5:] else ""))
    print(f"{len(mine)} of {len(mine)} complete")


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count`, evenly spread (van der Corput's sequence); a larger `wanted` only adds.

    `spread(20, 4)` is 0, 5, 10, 15, and `spread(20, 5)` is 0, 2, 5, 10, 15.
    """
    bits = (count - 1).bit_length()
    reversed_bits = (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits))
    order = dict.fromkeys(k * count >> bits for k in reversed_bits)
    return sorted(list(order)[:wanted])


def _sizes(items: Iterable[Item]) -> dict[Item, int]:
    """The sizes in bytes of those items whose server tells it without sending them."""
    import requests

    unreachable: list[Item] = []

    def size(item: Item) -> tuple[Item, int]:
        if len(unreachable) < 8:  # else there is no network, and asking on would only take long
            try:
                response = requests.head(
                    item.url, headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=10
                )
                if response.ok:
                    return item, int(response.headers.get("Content-Length", 0))
            except (requests.RequestException, ValueError):
                unreachable.append(item)
        return item, 0

    with ThreadPool(8) as pool:
        return {item: size for item, size in pool.map(size, items) if size}


def _refuse_full_disk(missing: int, sizes: Mapping[Item, int], at_once: int | None) -> None:
    """Raise `InputError` unless the disk holds the missing bytes and the archives that are there at the same time.

    Compressed videos and photographs take as much room inside an archive as outside.
    """
    archives = sorted((size for item, size in sizes.items() if item.archive), reverse=True)
    need = missing + sum(archives[:at_once])
    folder = next(parent for parent in next(iter(sizes)).target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    amount = f"need {need / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free"
    if need > free:
        raise InputError(f"{folder} is too small: the downloads {amount}; make room, or ask for less")
    print(f"the downloads {amount}")


def _bring(item: Item, keep_archives: bool, **options: Any) -> None:
    """Make one item complete, whatever an earlier attempt has left; `options` are those of `download`."""
    if not item.archive:
        download(item.url, item.target, **options)
        return
    busy = partial(options["say"], f"{item.unfinished.name}: waiting for another process")
    try:
        with locked(item.unfinished / "lock", busy):
            try:
                if not item.is_complete():
                    _bring_folder(item, **options)
                archive, kept = item.unfinished / item.archive, item.target.with_name(item.archive)
                if keep_archives and archive.exists() and not kept.exists():
                    os.rename(archive, kept)
            finally:
                if not item.arrived() or item.is_complete():
                    shutil.rmtree(item.unfinished, ignore_errors=True)  # whoever waits for us may put its lock into it
    except OSError as error:
        raise InputError(f"{item.target} cannot be written: {error}") from error


def _bring_folder(item: Item, **options: Any) -> None:
    """Fetch an archive, or take one that was kept, and extract it: which is how its bytes are checked."""
    files = item.unfinished / "files"

    def check(path: Path) -> None:
        if files.exists():
            shutil.rmtree(files)
        extract(path, files, item.archive)

    kept = item.target.with_name(item.archive)
    archive = kept if kept.exists() else item.unfinished / item.archive
    download(item.url, archive, check=check, **options)
    inner = next(files.iterdir())
    if len(list(files.iterdir())) == 1 and inner.is_dir() and inner.name.lower() == item.target.name.lower():
        files = inner  # one folder that only repeats the name
    count = sum(len(names) for _, _, names in os.walk(files))
    marker = json.dumps({"source": item.source, "bytes": archive.stat().st_size, "files": count})
    write_atomically(files / MARKER, lambda file: file.write(marker.encode()))
    os.rename(files, item.target)
    flush(item.target.parent)


def _part_names(listing: Path) -> list[str]:
    """The names of the archives in the server's list of their URLs, in its order."""
    names = [
        PurePosixPath(urlsplit(line).path).name
        for line in listing.read_text(encoding="utf-8", errors="replace").split()
    ]
    if not names or not all(re.fullmatch(r"\w[\w.-]*", name) and folder_name(name) for name in names):
        raise InputError(f"{listing} is not a list of the URLs of archives")
    return names


def _listed(line: str, out: Path, place: str) -> Item:
    """The item that one line of a list stands for; `place` names the line in messages."""
    address, _, given = line.strip().partition(" ")
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise InputError(f"{place}: {address!r} is no http or https URL")
    name = given.strip() or PurePosixPath(unquote(url.path)).name
    if not name or name[0] in ". " or not name.isprintable() or set(name) & {"/", "\\"}:
        raise InputError(f"{place}: {name!r} cannot be the name of a file; add a good one after the URL")
    folder = folder_name(name)
    source = url._replace(query="", fragment="").geturl()  # a query may hold a secret, and changes
    return Item(address, out / (folder or name), name, source) if folder else Item(address, out / name)
