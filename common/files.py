"""Writes that never leave half a file behind, a lock between processes, text in any encoding, pickles of arrays."""

import codecs
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import InputError

SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary neighbour of `path`, flush it to the disk and rename it to `path`.

    A reader sees the old file or the whole new one, also after a crash between any two steps.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path} cannot be written: {path.parent} is not a folder; name another place") from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)  # the rename itself is only durable once the folder is flushed


def flush(path: str | Path) -> None:
    """Return when a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: Callable[[], object]) -> Iterator[BinaryIO]:
    """Open `path` for reading and appending, with its folder, as the only process that has it open this way.

    If another process has it, `busy()` is called: it raises, or returns and we wait for the other to end. The lock ends
    with the process. The file may be removed or renamed while it is locked; whoever waits then makes a new one.
    """
    import fcntl  # Unix only, and needed only by who locks

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(path.stat(), os.fstat(file.fileno()))
            except FileNotFoundError:
                current = False
            if current:
                yield file
                return


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 with `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values so that any JSON parser reads them; lists of numbers stay on a line."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    write_text(path, text + "\n")


def read_text(path: str | Path) -> str:
    """The text of a file, see `decode_text`. Raises InputError for a file that cannot be read."""
    try:
        return decode_text(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def decode_text(data: bytes) -> str:
    """Text in whatever encoding it was saved: UTF-8, with or without a mark, UTF-16, or else Latin-1."""
    zeros = data[:200][0::2].count(0), data[:200][1::2].count(0)  # in UTF-16 every other byte of plain letters
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        text = data.decode("utf-32", "replace")
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    elif zeros[0] != zeros[1] and 0 in zeros:
        text = data.decode("utf-16-be" if zeros[0] else "utf-16-le", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's but one that macOS, Jupyter, Windows or Synology puts beside it."""
    return name.startswith(".") or name in SYSTEM


def existing_path(folder: str | Path, name: str) -> str:
    """The path of a file that a list names, relative to a folder, in the bytes that the file system has for it.

    A list in another encoding than the file system's names a file by other bytes: whichever of them exist are taken.
    """
    forms = [name]
    with suppress(UnicodeError):  # `read_text` took the bytes of the name for Latin-1
        forms.append(os.fsdecode(name.encode("latin-1")))
    forms.append(os.fsdecode(name.encode("utf-8", "surrogateescape")))  # the locale is ASCII, the names are UTF-8
    for form in forms:
        with suppress(UnicodeError):
            if os.path.exists(path := os.path.join(folder, form)):
                return path
    return os.path.join(folder, forms[-1])


# What numpy's arrays are pickled with, under its old and its new module names. Nothing else is ever imported.
_ADMITTED = {
    (module, name)
    for module, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.numeric": ("_frombuffer",),
        "numpy._core.numeric": ("_frombuffer",),
    }.items()
    for name in names
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes in protocol 2
            return lambda text, encoding: text.encode("latin-1")
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def load_arrays(stream: BinaryIO) -> Any:
    """What a pickle holds; `UnpicklingError` where it is more than arrays and plain values. A damaged one may raise
    nearly anything."""
    return _ArraysOnly(stream).load()
