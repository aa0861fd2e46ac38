"""Tar and zip archives of strangers: every byte checked, nothing written outside one new folder."""

import errno
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Self

from common.errors import InputError
from common.files import flush

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError, UnicodeError)
# What the system says to a name that no file can have; Python's own "bad gzip" is an OSError without a number.
_BY_ITS_NAMES = {None, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}


def folder_name(name: str) -> str:
    """What the folder of an archive of this name is called; empty for what is no archive."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), "")


def extract(archive: Path, folder: Path, name: str) -> None:
    """Extract `archive`, whose kind its `name` tells, into the new `folder`, and flush all of it to the disk.

    Only files and folders are taken, all or nothing: one link, device or pipe, one name that is absolute or climbs with
    `..`, and the archive is refused. No file is made executable for others, setuid, or another user's.

    Raises `InputError` for an archive that is damaged, hostile or empty, `OSError` if the disk is full or fails; in
    either case `folder` is gone again.
    """
    folder.mkdir()
    try:
        (_extract_zip if name.endswith(".zip") else _extract_tar)(archive, folder)
        if not _flush_all(folder):
            raise InputError(f"{name} holds no file")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _DAMAGED) or (isinstance(error, OSError) and error.errno in _BY_ITS_NAMES):
            raise InputError(f"{name} is not a good archive ({str(error).splitlines()[0]})") from error
        raise


class _StrictHeader(tarfile.TarInfo):
    """Python's reader takes a damaged header for the end of the archive, and would silently leave out what follows."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the proper end
                raise
            raise tarfile.ReadError(f"{error} between its files") from error


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:*", tarinfo=_StrictHeader) as tar:
        for member in tar:
            allowed = member.isdir() or (member.isfile() and not member.issparse())
            _refuse(member.name, "" if allowed else "a link, a device, a pipe or a sparse file")
            _refuse_full_disk(member.size, folder)
            tar.extract(member, folder, filter="data")
        assert tar.fileobj
        while rest := tar.fileobj.read(1 << 20):  # to the very end, where a compressed stream has its checksum
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows its end")


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on a system without such kinds
            _refuse(member.filename, "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link, a device or a pipe")
            _refuse_full_disk(member.file_size, folder)
            zipped.extract(member, folder)  # compares the checksum


def _refuse(name: str, kind: str) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise InputError(f"it holds {name!r}, which may lead out of its folder")
    if kind:
        raise InputError(f"it holds {name!r}, which is {kind}; only files and folders are taken")


def _refuse_full_disk(size: int, folder: Path) -> None:
    """A few bytes can unpack into more than any disk holds: stop before the disk is full, not after."""
    if size > (free := shutil.disk_usage(folder).free):
        raise OSError(errno.ENOSPC, f"a file in it needs {size:,} bytes, and the disk has {free:,} free")


def _flush_all(folder: Path) -> int:
    """Flush every file below `folder`, then the folders that name them; returns the number of files."""
    found = list(os.walk(folder, topdown=False))
    files = [os.path.join(parent, name) for parent, _, names in found for name in names]
    with ThreadPoolExecutor(16) as pool:  # many at once share a turn of the disk: 12,000 take one second instead of 34
        list(pool.map(flush, files))
    for parent, _, _ in found:
        flush(parent)
    return len(files)
