"""One file over HTTP: resumed after a broken connection, checked, and given its name only when it is whole.

The bytes grow in `<name>.part`, which the process that writes it has locked; `<name>.part.json` says which version of
which URL they belong to. Nothing under the final name is ever overwritten. Memory stays constant, whatever the size.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from common.errors import InputError
from common.files import locked

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 14  # bytes: as many are lost at most when a connection stalls
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the server asks for


def download(
    url: str,
    target: str | Path,
    *,
    expected_size: int | None = None,
    check: Callable[[Path], object] | None = None,
    retries: int = 5,
    backoff: float = 1.0,
    timeout: tuple[float, float] = (10.0, 60.0),
    progress: bool = True,
    say: Callable[[str], object] | None = None,
    count: Callable[[int], object] = lambda _: None,
) -> Path:
    """Bring `url` to the file `target` and return its path; a good file that is there is kept without a request.

    A file is good if it has `expected_size` bytes (and as many as the server announced), is no web page, and
    `check(path)` does not raise `InputError`. A broken connection, a 5xx or a 429 is tried again, up to `retries` times
    in a row without a new byte, after `backoff`, 2 `backoff`, 4 `backoff` … seconds or what the server asks for, never
    more than a minute; a server that has not answered once is given up sooner. `timeout` is (connect, read) in seconds.
    A second call for the same target, in whatever process, waits for the first. `progress` shows a bar and prints what
    is waited for; a given `say` is told that instead. `count` is told of the bytes as they come, with a minus of those
    that are thrown away.

    Raises `InputError` for everything else: no connection, 404, a wrong type or size, a full disk, a bad file at
    `target` (which stays). What had arrived stays for the next call, unless it was found to be bad.
    """
    target = Path(target)
    say = say or (partial(print, flush=True) if progress else lambda _: None)
    part = target.with_name(f"{target.name}.part")
    notes = target.with_name(f"{target.name}.part.json")
    fault = partial(_fault, suffix=target.suffix, expected_size=expected_size, check=check)
    try:
        if not target.exists():
            with locked(part, lambda: say(f"{part.name} is being written by another process: waiting for it")) as file:
                transfer = _Transfer(url, target, file, notes, expected_size, timeout, progress, say, count)
                if transfer.size() and not notes.exists():
                    raise InputError(f"{part} is in the way, not begun by this program: move it away, then try again")
                try:
                    if not target.exists():  # or else it was finished while we waited for the lock
                        transfer.run(retries, backoff)
                        if found := fault(part):
                            transfer.clear()
                            raise InputError(f"what {url} delivered was refused and removed: {found}")
                        if not target.exists():
                            os.replace(part, target)
                            return target
                        transfer.clear()  # someone put theirs there meanwhile: it is judged below
                finally:
                    if not part.exists() or not transfer.size():
                        notes.unlink(missing_ok=True)  # before the part: without a part another process starts over
                        part.unlink(missing_ok=True)
        if not part.exists():
            notes.unlink(missing_ok=True)  # left by a kill right after the renaming
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    if found := fault(target):
        raise InputError(f"{target} is there already, but is not good: {found}; move it away, then try again")
    return target


def is_web_page(head: bytes) -> bool:
    """Whether the first bytes of a file are those of HTML or XML, such as an error page under the name of a file."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


class _TryAgain(Exception):
    """Something that may pass; `wait` is the server's Retry-After, if it sent one."""

    def __init__(self, reason: str, wait: str | None = None):
        super().__init__(reason)
        self.wait = wait


@dataclass
class _Transfer:
    """The way from `url` into the locked, appending `file`, in as many attempts as it takes."""

    url: str
    target: Path
    file: BinaryIO
    notes: Path
    expected_size: int | None
    timeout: tuple[float, float]
    progress: bool
    say: Callable[[str], object]
    count: Callable[[int], object]
    answered: bool = False  # whether the server has answered at all

    def run(self, retries: int, backoff: float) -> None:
        """Attempt after attempt, until every byte is on the disk."""
        import requests
        import urllib3

        furthest, failures = self.size(), 0
        while True:
            asked = None
            try:
                self.attempt()
                os.fsync(self.file.fileno())
                return
            except _TryAgain as error:
                reason, asked = str(error), error.wait
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
                host = urlsplit(self.url).netloc
                raise InputError(
                    f"{self.target.name} could not be fetched from {host} ({reason}){kept}; {self.by_hand()}"
                )
            wait = backoff * 2 ** (failures - 1)
            with suppress(urllib3.exceptions.InvalidHeader):
                wait = urllib3.Retry().parse_retry_after(asked) if asked else wait
            wait = min(wait, LONGEST_WAIT)
            self.say(f"{self.target.name}: {reason}; again in {wait:.0f} s")
            time.sleep(wait)

    def attempt(self) -> None:
        """One request for the bytes that are missing; raises `_TryAgain`, or what requests and urllib3 raise."""
        import requests
        from tqdm import tqdm

        known, size = self.known(), self.size()
        if size and size == known.get("total"):
            return
        headers = {"Accept-Encoding": "identity"}  # the bytes as they are stored: sizes and ranges count those
        if size and known.get("validator"):
            headers |= {"Range": f"bytes={size}-", "If-Range": known["validator"]}
        with requests.get(self.url, headers=headers, stream=True, timeout=self.timeout) as response:
            self.answered = True
            total = self.accept(response, known)
            missing, free = (total or 0) - self.size(), shutil.disk_usage(self.target.parent).free
            if missing > free:
                raise InputError(
                    f"{self.target} needs {missing:,} more bytes, and the disk has {free:,} free: make room"
                )
            with tqdm(
                desc=self.target.name, total=total, initial=self.size(), disable=not self.progress,
                unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5,
            ) as bar:  # fmt: skip
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    self.file.write(chunk)
                    bar.update(len(chunk))
                    self.count(len(chunk))
        if total is not None and (arrived := self.size()) != total:
            if arrived > total:
                self.clear()
            raise _TryAgain(f"{arrived:,} bytes came of {total:,}")

    def accept(self, response: "requests.Response", known: dict[str, Any]) -> int | None:
        """See that what follows is the file, or continues it where our bytes end; returns its whole size, if known."""
        status, headers = response.status_code, response.headers
        said = f"the server answered {status} {response.reason}"
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(said, headers.get("Retry-After"))
        if status not in (200, 206, 416):
            raise InputError(f"{self.url} cannot be fetched, {said}; {self.by_hand()}")
        kind = headers.get("Content-Type", "")
        if kind.startswith("text/html") and self.target.suffix not in (".html", ".htm"):
            raise InputError(f"{self.url} is answered with a web page ({kind}), not with the file; {self.by_hand()}")
        # What If-Range accepts as a mark of the version (RFC 9110, 13.1.5): a strong ETag, or the date of change.
        tag = headers.get("ETag")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        if status == 200:
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            if total is not None and self.expected_size not in (None, total):
                raise InputError(
                    f"{self.url} has {total:,} bytes instead of {self.expected_size:,}: it is another file"
                )
            self.clear()  # before the new version is noted: old bytes must never stand under a new mark
            self.notes.write_text(json.dumps({"url": self.url, "validator": validator, "total": total}))
            return total
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "")) if status == 206 else None
        whole = int(span[2]) if span and span[2] != "*" else known.get("total")
        if (
            not span
            or int(span[1]) != self.size()
            or validator not in (None, known.get("validator"))
            or known.get("total") not in (None, whole)
        ):
            self.clear()
            raise _TryAgain("the file has changed on the server")
        return whole

    def known(self) -> dict[str, Any]:
        """The version that our bytes belong to: url, validator, total (bytes); empty if unknown or of another URL."""
        try:
            known = json.loads(self.notes.read_text())
            return known if known["url"] == self.url else {}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return {}

    def clear(self) -> None:
        self.count(-self.size())
        self.file.truncate(0)

    def size(self) -> int:
        self.file.flush()
        return os.fstat(self.file.fileno()).st_size

    def by_hand(self) -> str:
        return f"fetch {self.url} by hand and put it at {self.target}"


def _fault(path: Path, *, suffix: str, expected_size: int | None, check: Callable[[Path], object] | None) -> str | None:
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
