"""Writes that never leave half a file behind."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError


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
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself is only durable once the folder is flushed
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
