"""Archives of strangers: whatever is in them, either all their files come out, or nothing is written anywhere."""

import gzip
import io
import random
import tarfile
import zipfile

import pytest

from common.errors import InputError
from dataset_loader.preparing.archives import SUFFIXES, extract


def noise(name, size):
    return random.Random(name).randbytes(size)


def tar(members, suffix="gz"):
    """An archive of (name, bytes) or whole `TarInfo`s."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{suffix}") as archive:
        for one in members:
            info, data = (
                (one, bytes(one.size)) if isinstance(one, tarfile.TarInfo) else (tarfile.TarInfo(one[0]), one[1])
            )
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def tree(folder):
    """Everything below a folder: the mode of each folder and file, and all bytes."""
    return {
        str(path.relative_to(folder)): (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def contents(folder):
    """The files below a folder, by name."""
    return {name: data for name, (_, data) in tree(folder).items() if data is not None}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_archive(tmp_path, suffix):
    files = [("a.mp4", noise("a", 70_000)), ("./b/c d.mp4", b"c"), ("b/ü.mp4", b""), ("b/..c", b"d"), ("-e.mp4", b"e")]
    compression = {"z2": "bz2", "xz": "xz", "gz": "gz"}.get(suffix[-2:], "")
    (tmp_path / "archive").write_bytes(zipped(files) if suffix == ".zip" else tar(files, compression))
    extract(tmp_path / "archive", tmp_path / "out", f"a{suffix}")
    assert contents(tmp_path / "out") == {name.removeprefix("./"): content for name, content in files}


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    return info


def zip_member(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


OUTSIDE = "OUTSIDE"  # replaced by the absolute path of a folder outside
HOSTILE = {
    "..": ([("../stolen", b"x")], "may lead out"),
    "../ in the middle": ([("a/b/../../../stolen", b"x")], "may lead out"),
    "absolute": ([(f"{OUTSIDE}/stolen", b"x")], "may lead out"),
    "absolute folder": ([member(f"{OUTSIDE}/stolen", tarfile.DIRTYPE)], "may lead out"),
    "backslash": ([("..\\stolen", b"x")], "may lead out"),
    "symlink, then through it": ([member("a", tarfile.SYMTYPE, OUTSIDE), ("a/stolen", b"x")], "a link"),
    "symlink over a file": ([member("a", tarfile.SYMTYPE, f"{OUTSIDE}/mine"), ("a", b"x")], "a link"),
    "symlink inside": ([("a", b"x"), member("b", tarfile.SYMTYPE, "a")], "a link"),
    "hard link": ([member("a", tarfile.LNKTYPE, f"{OUTSIDE}/mine"), ("a", b"x")], "a link"),
    "fifo": ([member("a.mp4", tarfile.FIFOTYPE)], "a pipe"),
    "device": ([member("a.mp4", tarfile.CHRTYPE)], "a device"),
    "block device": ([member("a.mp4", tarfile.BLKTYPE)], "a device"),
    "unknown kind": ([member("a.mp4", b"?", size=3)], None),  # Python reads these as files, as POSIX asks for
    "file and folder": ([("a", b"x"), ("a/b", b"y")], "is not a good archive"),
    "long name": ([("n" * 300, b"x")], "is not a good archive"),
}
ZIPS = [
    *[((name, b"x"), "may lead out") for name in ("../stolen", "/tmp/stolen", "a/../../stolen", "..\\stolen")],
    *[((zip_member("a", kind), b".."), words)
      for kind, words in ((0o120000, "a link"), (0o010000, "a pipe"), (0o020000, "a device"))],
]  # fmt: skip


@pytest.mark.parametrize("case", [*HOSTILE, *range(len(ZIPS)), "nothing"])
def test_a_hostile_archive_writes_nothing_anywhere(tmp_path, case):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    if case == "nothing":
        name, data, words = "a.tar.gz", tar([member("a", tarfile.DIRTYPE)]), "holds no file"
    elif isinstance(case, int):
        hostile, words = ZIPS[case]
        name, data = "a.zip", zipped([("first", b"1"), hostile])
    else:
        members, words = HOSTILE[case]
        replaced = []
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                one = one.replace(name=one.name.replace(OUTSIDE, str(outside)), deep=True)
                one.linkname = one.linkname.replace(OUTSIDE, str(outside))
                replaced.append(one)
            else:
                replaced.append((one[0].replace(OUTSIDE, str(outside)), one[1]))
        name, data = "a.tar.gz", tar([("first.mp4", b"1"), *replaced])
    (tmp_path / "a").write_bytes(data)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=words):
        extract(tmp_path / "a", tmp_path / "out", name)
    assert tree(tmp_path) == before


def test_no_special_modes(tmp_path):
    (tmp_path / "a").write_bytes(tar([member("setuid", mode=0o7777), member("unreadable", mode=0)]))
    extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
    assert (tmp_path / "out" / "setuid").stat().st_mode & 0o7022 == 0
    assert (tmp_path / "out" / "unreadable").stat().st_mode & 0o600 == 0o600


def damaged(tmp_path, data, name):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=f"^{name} is not a good archive") as caught:
        extract(tmp_path / "a", tmp_path / "out", name)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "tar", "zip"])
def test_damage_never_goes_unnoticed(tmp_path, suffix):
    files = [(f"{k}.mp4", noise(k, 300)) for k in range(3)]
    data = zipped(files) if suffix == "zip" else tar(files, {"tar": ""}.get(suffix, suffix[4:]))
    chance = random.Random(0)
    whole = len(data.rstrip(b"\0")) if suffix == "tar" else len(data)  # a tar ends in zeros
    for size in [*chance.sample(range(whole), 20), whole - 1]:
        damaged(tmp_path, data[:size], f"a.{suffix}")
    if suffix in ("tar.gz", "tar.bz2", "tar.xz"):  # a plain tar has checksums for its headers only
        for place in [*chance.sample(range(10, len(data)), 20), *range(len(data) - 4, len(data))]:
            damaged(tmp_path, data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :], f"a.{suffix}")


def test_a_damaged_header_does_not_end_an_archive(tmp_path):
    plain = tar([(f"{k}.mp4", noise(k, 300)) for k in range(3)], "")
    for place in (1024, 1024 + 124, 2048 + 148):  # header, data, header, data, header, data
        damaged(tmp_path, gzip.compress(plain[:place] + b"?" + plain[place + 1 :]), "a.tar.gz")
    damaged(tmp_path, gzip.compress(plain[:1024]), "a.tar.gz")  # no end mark
    damaged(tmp_path, gzip.compress(plain[:1024] + bytes(1024) + plain[1024:]), "a.tar.gz")  # an end in the middle
    damaged(tmp_path, zipped([("a", noise("a", 99))]).replace(noise("a", 99)[:9], b"ninebytes"), "a.zip")


def test_an_archive_that_unpacks_into_more_than_the_disk_holds(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(member("a.mp4", size=1 << 50).tobuf()))
    with pytest.raises(OSError, match="needs 1,125,899,906,842,624 bytes, and the disk has"):
        extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):  # nor is a folder that is there extracted into
        extract(tmp_path / "a", tmp_path / "out", "a.tar.gz")
