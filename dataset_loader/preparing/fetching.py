"""Bringing many files and archives here at once, so that a program which is killed at any moment can go on.

An archive `part_0.tar.gz` becomes the folder `part_0`. Until then all of it is in `.part_0.unfinished`: its bytes, then
its files and, when these are checked and flushed to the disk, a marker among them; one rename makes the folder appear.
So a folder with a marker is complete, and one without is somebody else's and stays untouched. A URL that is no archive
becomes a file, which gets its name when it is whole.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from common.download import download
from common.errors import InputError
from common.files import write_atomically
from dataset_loader.preparing.archives import extract, flush
from dataset_loader.preparing.shards import take_shard

MARKER = ".complete.json"


@dataclass(frozen=True)
class Item:
    """One URL, and what becomes of it: the file `target` or, if it is an `archive` of that name, a folder there."""

    url: str
    target: Path
    archive: str = ""
    source: str = ""
    """for the marker: what the folder was made of, the same for all mirrors"""

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
            try:
                return path.stat().st_size
            except OSError:
                pass
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

    A bad connection is tried again, `retries` times in a row, after `backoff`, 2 `backoff`, 4 `backoff` … seconds. What
    fails for good gets a second chance when all else is through; then an `InputError` names it, and all else is
    complete. With `keep_archives` an archive stays beside its folder. If something of the user's is in the way, or the
    disk is too small, an `InputError` says so before anything is fetched.
    """
    from tqdm import tqdm

    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    mine = take_shard(items, shard)
    todo = [item for item in mine if not item.is_complete() or item.unfinished.exists()]
    before = len(mine) - len(todo)
    print(f"{before} of {len(mine)} complete, {len(todo)} to fetch")
    sizes = _sizes(todo)
    got = {item: item.arrived() for item in todo}
    _refuse_full_disk(todo, sizes, sum(got.values()), jobs, keep_archives)
    for folder in {item.target.parent for item in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder} is no folder that can be written to ({error.strerror})") from error
    with tqdm(
        desc=f"{before} of {len(mine)} complete", total=_extrapolated(sizes, len(todo)), initial=sum(got.values()),
        unit="B", unit_scale=True, mininterval=0.5 if sys.stdout.isatty() else 30, file=sys.stdout, disable=not todo,
    ) as bar:  # fmt: skip

        def bring(item: Item) -> None:
            def say(message: str) -> None:
                if not bar.disable:  # as it is once closed
                    bar.write(f"{item.target.parent.name}/{message}")  # part_0 is a name in each split

            _bring(item, sizes.get(item), keep_archives, retries=retries, backoff=backoff, say=say)

        def show(active: Collection[Item], done: Collection[Item]) -> None:
            got.update({item: item.arrived() for item in active} | {item: sizes.get(item, got[item]) for item in done})
            bar.set_description(f"{before + len(done)} of {len(mine)} complete", refresh=False)
            bar.update(sum(got.values()) - bar.n)

        failed = _in_parallel(bring, todo, jobs, show, bar.write)
    if failed:
        count = f"{len(failed)} of {len(mine)} failed, the same command tries them again: " if len(mine) > 1 else ""
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise InputError(count + "; ".join(str(error) for error in list(failed.values())[:5]) + more)
    print(f"{len(mine)} of {len(mine)} complete")


def _sizes(items: Sequence[Item]) -> dict[Item, int]:
    """The sizes in bytes of those items whose server tells it without sending them."""
    import requests

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=8))
    unreachable: list[Item] = []

    def size(item: Item) -> int:
        if len(unreachable) >= 8:  # no network, then: it would only take long
            return 0
        try:
            headers = {"Accept-Encoding": "identity"}
            response = session.head(item.url, headers=headers, allow_redirects=True, timeout=10)
        except requests.RequestException:
            unreachable.append(item)
            return 0
        length = response.headers.get("Content-Length", "")
        return int(length) if response.status_code == 200 and length.isdigit() else 0

    with session, ThreadPoolExecutor(8) as pool:
        return {item: size for item, size in zip(items, pool.map(size, items), strict=True) if size}


def _extrapolated(sizes: Mapping[Item, int], count: int) -> int | None:
    """The bytes of `count` items, if those of unknown size are like the others."""
    return round(sum(sizes.values()) * count / len(sizes)) if sizes else None


def _refuse_full_disk(
    items: Sequence[Item], sizes: Mapping[Item, int], arrived: int, jobs: int, keep_archives: bool
) -> None:
    """Raise `InputError` unless the disk holds all files and the archives that are there at the same time.

    Compressed videos and photographs take as much room inside an archive as outside.
    """
    if not sizes:
        return
    archives = sorted((size for item, size in sizes.items() if item.archive), reverse=True)
    beside = sum(archives if keep_archives else archives[:jobs])
    need = (_extrapolated(sizes, len(items)) or 0) + beside - arrived
    folder = next(parent for parent in items[0].target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    amount = f"need {need / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free"
    if need > free:
        raise InputError(f"{folder} is too small: the downloads {amount}; make room, or ask for less")
    print(f"the downloads {amount}")


def _bring(item: Item, size: int | None, keep_archives: bool, **patience: Any) -> None:
    """Make one item complete, whatever an earlier attempt has left."""
    if not item.archive:
        download(item.url, item.target, expected_size=size, progress=False, **patience)
        return
    try:
        with _alone(item.unfinished, patience["say"]):
            try:
                if not item.is_complete():
                    _bring_folder(item, size, patience)
                archive, kept = item.unfinished / item.archive, item.target.with_name(item.archive)
                if keep_archives and archive.exists() and not kept.exists():
                    os.rename(archive, kept)
            finally:
                if not item.arrived() or item.is_complete():
                    shutil.rmtree(item.unfinished, ignore_errors=True)  # whoever waits for us may put its lock into it
    except OSError as error:
        raise InputError(f"{item.target} cannot be written: {error}") from error


def _bring_folder(item: Item, size: int | None, patience: Mapping[str, Any]) -> None:
    """Fetch an archive, or take one that was kept, and extract it: which is how its bytes are checked."""
    files = item.unfinished / "files"

    def check(path: Path) -> None:
        if files.exists():
            shutil.rmtree(files)
        extract(path, files, item.archive)

    kept = item.target.with_name(item.archive)
    archive = kept if kept.exists() else item.unfinished / item.archive
    download(item.url, archive, expected_size=size, check=check, progress=False, **patience)
    inner = files / item.target.name
    if list(files.iterdir()) == [inner] and inner.is_dir():  # one folder that only repeats the name
        files = inner
    count = sum(len(names) for _, _, names in os.walk(files))
    marker = json.dumps({"source": item.source, "bytes": archive.stat().st_size, "files": count})
    write_atomically(files / MARKER, lambda file: file.write(marker.encode()))
    os.rename(files, item.target)
    flush(item.target.parent)


@contextmanager
def _alone(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Make `folder`, and be the only process that works in it, until it is removed or the end."""
    import fcntl

    path = folder / "lock"
    with ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = stack.enter_context(open(path, "ab"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"{folder.name}: waiting for another process")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                    break
            except FileNotFoundError:
                pass  # the process before us has removed it all meanwhile
        yield


def _in_parallel(
    do: Callable[[Item], None],
    items: Sequence[Item],
    jobs: int,
    show: Callable[[Collection[Item], Collection[Item]], None],
    say: Callable[[str], None],
) -> dict[Item, InputError]:
    """Do it to all items on `jobs` threads, and `show(active, done)` twice a second; what failed twice, and why."""
    waiting: Queue[Item | None] = Queue()
    results: Queue[tuple[Item, BaseException | None]] = Queue()
    active: set[Item] = set()

    def work() -> None:
        while item := waiting.get():
            active.add(item)
            error: BaseException | None = None
            try:
                do(item)
            except BaseException as caught:
                error = caught
            active.discard(item)
            results.put((item, error))

    for item in items:
        waiting.put(item)
    for _ in range(min(jobs, len(items))):
        Thread(target=work, daemon=True).start()  # ends with the program at once, as safely as in any other kill
    done: set[Item] = set()
    failed: dict[Item, InputError] = {}
    missing, in_a_row, shown = len(items), 0, 0.0
    try:
        while missing and in_a_row < 20:
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                show(active.copy(), done)
            try:
                item, error = results.get(timeout=0.5)
            except Empty:
                continue
            in_a_row = in_a_row + 1 if error else 0
            if error is None:
                done.add(item)
                missing -= 1
            elif not isinstance(error, InputError):
                raise error
            else:
                if item in failed:
                    missing -= 1
                else:
                    say(f"{error}; tried again in the end")
                    waiting.put(item)  # a second chance, when all else is through
                failed[item] = error
        show((), done)
    finally:
        while not waiting.empty():
            waiting.get_nowait()
        for _ in range(jobs):
            waiting.put(None)
    untried = InputError("not tried, after 20 failures in a row")
    return {item: failed.get(item, untried) for item in items if item not in done}
