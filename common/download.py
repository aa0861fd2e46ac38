"""One file over HTTP: resumed after a broken connection, checked, and given its name only when it is whole.

The bytes grow in `<name>.part`, locked by the process that writes it; `<name>.part.json` says of which version of which
URL they are. Nothing that bears the final name is ever overwritten. Memory stays constant: it does for data sets too.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from common.errors import InputError

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 14  # bytes: as many are lost at most when a connection stalls
_MAY_PASS = {408, 425, 429}  # and every 5xx


def download(
    url: str,
    target: str | Path,
    *,
    expected_size: int | None = None,
    check: Callable[[Path], object] | None = None,
    retries: int = 5,
    backoff: float = 1.0,
    longest_wait: float = 60.0,
    timeout: tuple[float, float] = (10.0, 60.0),
    progress: bool = True,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Bring `url` to the file `target` and return its path; a good file that is there is kept without a request.

    A file is good if it has `expected_size` bytes (and as many as the server announced), is no web page, and
    `check(path)` does not raise `InputError`. A broken connection, a 5xx or a 429 is tried again, up to `retries` times
    in a row without a new byte, after `backoff`, 2 `backoff`, 4 `backoff` … seconds or what the server asks for, never
    more than `longest_wait`; a server that has not answered once is given up sooner. `timeout` is (connect, read) in
    seconds. A second call for the same target, in whatever process, waits for the first. `progress` shows a bar and
    prints what is waited for; a given `say` is told that instead.

    Raises `InputError` for everything else: no connection, 404, a wrong type or size, a full disk, a bad file at
    `target` (which stays). What had arrived stays for the next call, unless it was found to be bad.
    """
    target = Path(target)
    say = say or (partial(print, flush=True) if progress else _silence)
    part = target.with_name(f"{target.name}.part")
    sidecar = target.with_name(f"{target.name}.part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with _locked(part, sidecar, say) as file:
                if not target.exists():  # or else it was finished while we waited for the lock
                    transfer = _Transfer(url, target, file, sidecar, expected_size, timeout, progress, say)
                    transfer.until_complete(retries, backoff, longest_wait)
                    if fault := _fault(part, target.suffix, expected_size, check):
                        file.truncate(0)
                        raise InputError(f"what {url} delivered was refused and removed: {fault}")
                    if not target.exists():
                        os.replace(part, target)
                        return target
                    file.truncate(0)  # someone put theirs there meanwhile: it is judged below
        if not part.exists():
            sidecar.unlink(missing_ok=True)  # left by a kill right after the renaming
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    if fault := _fault(target, target.suffix, expected_size, check):
        raise InputError(f"{target} is there already, but is not good: {fault}; move it away, then try again")
    return target


def is_web_page(head: bytes) -> bool:
    """Whether the first bytes of a file are those of HTML or XML, such as an error page under the name of a file."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


class _TryAgain(Exception):
    """Something that may pass; `wait` is how many seconds the server asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Version:
    """What the bytes in a `.part` file belong to: a URL, the server's mark of the version, the whole size in bytes."""

    url: str
    validator: str | None = None
    total: int | None = None


@dataclass
class _Transfer:
    """The way from `url` into the locked, appending `file`, in as many attempts as it takes."""

    url: str
    target: Path
    file: BinaryIO
    sidecar: Path
    expected_size: int | None
    timeout: tuple[float, float]
    progress: bool
    say: Callable[[str], object]
    answered: bool = False  # whether the server has answered at all

    def until_complete(self, retries: int, backoff: float, longest_wait: float) -> None:
        """Attempt after attempt until every byte is on the disk."""
        import requests
        import urllib3

        name, host = self.target.name, urlsplit(self.url).netloc
        furthest, failures = self.size(), 0
        while True:
            wait = None
            try:
                self.attempt()
                self.file.flush()
                os.fsync(self.file.fileno())
                return
            except _TryAgain as error:
                reason, wait = str(error), error.wait
            except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
                inner = error.args[0] if error.args else error
                reason = str(getattr(inner, "reason", inner))  # urllib3's own sentence, without requests' wrapping
            except requests.RequestException as error:
                raise InputError(f"{self.url} cannot be fetched: {error}") from error
            # Only bytes beyond the furthest count as progress: a server that knows no Range and always breaks off at
            # the same place would otherwise be asked for ever.
            failures = 1 if self.size() > furthest else failures + 1
            furthest = max(furthest, self.size())
            if failures > (retries if self.answered else min(retries, 2)):
                kept = f", {self.size():,} bytes are kept for the next time" if self.size() else ""
                raise InputError(f"{name} could not be fetched from {host} ({reason}){kept}; {self.by_hand()}")
            wait = min(backoff * 2 ** (failures - 1) if wait is None else wait, longest_wait)
            self.say(f"{name}: {reason}; again in {wait:.0f} s")
            time.sleep(wait)

    def attempt(self) -> None:
        """One request for the bytes that are missing; raises `_TryAgain`, or what requests and urllib3 raise."""
        import requests
        from tqdm import tqdm

        version = self.known_version()
        if self.size() and self.size() == version.total:
            return
        headers = {"Accept-Encoding": "identity"}  # the bytes as they are stored: sizes and ranges count those
        if self.size() and version.validator:
            headers |= {"Range": f"bytes={self.size()}-", "If-Range": version.validator}
        with requests.get(self.url, headers=headers, stream=True, timeout=self.timeout) as response:
            self.answered = True
            self.refuse_errors(response)
            if response.status_code == 206:
                total = self.continued(response.headers, version)
            else:
                total = self.from_the_start(response.headers)
            self.refuse_full_disk(total)
            with tqdm(
                desc=self.target.name, total=total, initial=self.size(), disable=not self.progress,
                unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5,
            ) as bar:  # fmt: skip
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    self.file.write(chunk)
                    bar.update(len(chunk))
        if total is not None and self.size() != total:
            arrived = self.size()
            if arrived > total:
                self.file.truncate(0)
            raise _TryAgain(f"{arrived:,} bytes came of {total:,}")

    def refuse_errors(self, response: "requests.Response") -> None:
        status = f"{response.status_code} {response.reason}"
        if response.status_code in _MAY_PASS or response.status_code >= 500:
            raise _TryAgain(f"the server answered {status}", _seconds(response.headers.get("Retry-After")))
        if response.status_code == 416:  # more bytes here than there
            self.file.truncate(0)
            raise _TryAgain("the file has changed on the server")
        if response.status_code not in (200, 206):
            raise InputError(f"{self.url} cannot be fetched, the server answered {status}; {self.by_hand()}")
        kind = response.headers.get("Content-Type", "")
        if kind.startswith("text/html") and self.target.suffix not in (".html", ".htm"):
            raise InputError(f"{self.url} is answered with a web page ({kind}), not with the file; {self.by_hand()}")

    def from_the_start(self, headers: Mapping[str, str]) -> int | None:
        """Prepare for the whole file; returns its size in bytes if the server says it."""
        total = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
        if total is not None and self.expected_size not in (None, total):
            raise InputError(f"{self.url} has {total:,} bytes instead of {self.expected_size:,}: it is another file")
        self.file.truncate(0)  # before the new version is noted: old bytes must never stand under a new mark
        self.sidecar.write_text(json.dumps(asdict(_Version(self.url, _validator(headers), total))))
        return total

    def continued(self, headers: Mapping[str, str], version: _Version) -> int | None:
        """Make sure that what follows continues the same version where our bytes end; returns the whole size."""
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        start, total = (int(span[1]), None if span[2] == "*" else int(span[2])) if span else (None, None)
        if (
            start != self.size()
            or _validator(headers) not in (None, version.validator)
            or (total and version.total and total != version.total)
        ):
            self.file.truncate(0)
            raise _TryAgain("the file has changed on the server")
        return total or version.total

    def refuse_full_disk(self, total: int | None) -> None:
        missing, free = (total or 0) - self.size(), shutil.disk_usage(self.target.parent).free
        if missing > free:
            raise InputError(f"{self.target} needs {missing:,} more bytes, and the disk has {free:,} free: make room")

    def known_version(self) -> _Version:
        """The version that our bytes belong to; one without a mark cannot be continued, and is begun again."""
        try:
            version = _Version(**json.loads(self.sidecar.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            version = _Version("")
        return version if version.url == self.url else _Version(self.url)

    def size(self) -> int:
        self.file.flush()
        return os.fstat(self.file.fileno()).st_size

    def by_hand(self) -> str:
        return f"fetch {self.url} by hand and put it at {self.target}"


def _silence(_: str) -> None:
    pass


@contextmanager
def _locked(part: Path, sidecar: Path, say: Callable[[str], object]) -> Iterator[BinaryIO]:
    """Open the `.part` file for appending, alone among all processes; in the end, an empty one is cleared away."""
    import fcntl  # not on every system, and needed by nobody who does not download

    while True:
        with open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{part.name} is being written by another process: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(part, file):
                continue  # whoever held the lock has finished or given up, and taken the file away
            if os.fstat(file.fileno()).st_size and not sidecar.exists():
                raise InputError(f"{part} is in the way, not begun by this program: move it away, then try again")
            try:
                yield file
            finally:
                file.flush()
                if not _is_at(part, file):
                    sidecar.unlink(missing_ok=True)
                elif not os.fstat(file.fileno()).st_size:
                    sidecar.unlink(missing_ok=True)  # before the part, whose end lets another process begin
                    part.unlink()
            return


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether `path` still leads to the open `file`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _fault(path: Path, suffix: str, expected_size: int | None, check: Callable[[Path], object] | None) -> str | None:
    """What is wrong with a file, if anything."""
    if not path.is_file():
        return "it is no file"
    size = path.stat().st_size
    if not size or expected_size not in (None, size):
        return f"it has {size:,} bytes" + (f" instead of {expected_size:,}" if expected_size else "")
    with open(path, "rb") as file:
        if is_web_page(file.read(512)) and suffix not in (".html", ".htm", ".xml"):
            return "it is a web page"
    try:
        if check:
            check(path)
    except InputError as error:
        return str(error)
    return None


def _validator(headers: Mapping[str, str]) -> str | None:
    """The mark of a file's version that If-Range accepts (RFC 9110, 13.1.5): a strong ETag or the date of change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _seconds(retry_after: str | None) -> float | None:
    """The header Retry-After, which is a number of seconds or a date, as seconds from now."""
    if retry_after is None:
        return None
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
