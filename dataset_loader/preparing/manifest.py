"""What is known of every file of a data set, as a table, and the rules that say which files are used.

A manifest is a CSV file in UTF-8, one `Row` a file, sorted by path. It lies beside the folder, `clips.manifest.csv` for
`clips/`, never in it.
"""

import codecs
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import decode_text, write_atomically

OK = "ok"


@dataclass(frozen=True)
class Row:
    """One file. What could not be determined is 0 or empty; numbers are rounded so that every machine writes the same.

    path: relative to the folder, with `/`. modified: ns, for telling whether the file is still the one that was read.
    hash: BLAKE2b of the content, 128 bits (`b2sum -l 128`). seconds: from the first frame to the end of the last,
    without pauses. frames: those that come out of a decoder. damaged: packets it refuses, frames it had to patch up,
    and what the file announces but lacks. differing: of two frames, how many are others when they are decoded by random
    access. fps: frames by seconds. variable: whether the distances in time differ by more than a fifth. pauses,
    longest_pause: of the clock, much longer than its usual step; in seconds. resets: how often it goes back. pasts: how
    many frames can begin a pair with a gap of 4 to 48 thirtieths of a second. width, height: pixels, as shown.
    keyframe_spacing: the most frames from one keyframe to the next. status: "ok", "unreadable", "hung" or "crashed"
    (its decoder), or the first rule that it breaks. reason: all that is wrong. split: "train", "test" or empty.
    """

    path: str
    bytes: int = 0
    modified: int = 0
    hash: str = ""
    seconds: float = 0.0
    frames: int = 0
    damaged: int = 0
    differing: int = 0
    fps: float = 0.0
    variable: bool = False
    pauses: int = 0
    longest_pause: float = 0.0
    resets: int = 0
    pasts: int = 0
    width: int = 0
    height: int = 0
    codec: str = ""
    keyframe_spacing: int = 0
    status: str = ""
    reason: str = ""
    split: str = ""


COLUMNS = [field.name for field in fields(Row)]


@dataclass(frozen=True)
class Rules:
    """Which files are used. The defaults are the filter of the public replications on Kinetics-400: they leave out
    what is corrupt, shorter than 3 s or not at 29–30 fps. None switches a rule off."""

    min_seconds: float | None = 3.0
    """shortest that is used; None switches a rule off"""
    min_fps: float | None = 29.0
    """frames a second, as measured"""
    max_fps: float | None = 30.0
    """frames a second, as measured"""
    min_side: int | None = 16
    """shorter side in pixels; 16 is one patch"""
    max_damaged: int | None = 0
    """damaged or missing frames that are put up with"""
    max_breaks: int | None = 0
    """pauses and resets of the clock that are put up with; no pair is drawn across one"""
    min_pasts: int | None = 1
    """frames that can begin a pair with a gap of 4 to 48 thirtieths of a second"""

    def judge(self, row: Row) -> Row:
        """The row with its status and reason. A row that could not be measured keeps those it has.

        Seconds count to hundredths and rates to tenths: containers round times to milliseconds.
        """
        if row.status not in ("", *JUDGED):
            return row
        broken = list(self._broken(row))
        status, reason = (broken[0][0], "; ".join(reason for _, reason in broken)) if broken else (OK, "")
        return replace(row, status=status, reason=reason)

    def _broken(self, row: Row) -> Iterator[tuple[str, str]]:
        seconds, fps = round(row.seconds, 2), round(row.fps, 1)
        if self.max_damaged is not None and row.damaged > self.max_damaged:
            yield "damaged", f"{row.damaged} of its frames are damaged or missing"
        if row.differing:
            yield "damaged", "shows other pictures when it is read from its middle than when it is read in order"
        if self.max_breaks is not None and row.pauses + row.resets > self.max_breaks:
            if row.pauses:
                yield "clock", f"its clock pauses ({row.pauses} times, at most {row.longest_pause:g} s)"
            if row.resets:
                yield "clock", f"its clock starts anew ({row.resets} times), as where recordings were joined"
        if row.frames == 1:
            yield "short", "has only one frame; a pair needs two"
        elif self.min_pasts is not None and row.pasts < self.min_pasts:
            yield "short", f"has {row.pasts or 'no'} frames with another 0.133 to 1.6 s later, and no pause in between"
        if self.min_seconds is not None and seconds < self.min_seconds:
            yield "short", f"lasts {seconds:g} s, less than {self.min_seconds:g} s"
        if self.min_fps is not None and fps < self.min_fps:
            yield "rate", f"has {fps:g} frames a second, fewer than {self.min_fps:g}"
        if self.max_fps is not None and fps > self.max_fps:
            yield "rate", f"has {fps:g} frames a second, more than {self.max_fps:g}"
        if self.min_side is not None and min(row.width, row.height) < self.min_side:
            yield "small", f"is {row.width}×{row.height}, under {self.min_side} pixels"


# What a rule says of a file, unlike what was found when it was decoded.
JUDGED = (OK, "damaged", "clock", "short", "rate", "small")


def default_path(folder: str | Path) -> Path:
    """Where the manifest of a folder lies: `clips.manifest.csv` beside `clips/`; of a link, beside the link."""
    folder = Path(folder)
    folder = folder.resolve() if ".." in folder.parts else folder.absolute()
    if not folder.name:
        raise InputError(f"{folder} has nothing beside it, where its manifest would lie; name a folder below it")
    return folder.with_name(f"{folder.name}.manifest.csv")


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows, sorted by path; the same rows make the same bytes. The file appears when it is complete."""
    ordered = sorted(rows, key=lambda row: row.path)
    try:
        write_table(path, COLUMNS, [(asdict(row) | {"variable": int(row.variable)}).values() for row in ordered])
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another place with --out") from error


def write_table(path: str | Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file in UTF-8; names that are none keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomically(path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))


def read_manifest(path: str | Path) -> list[Row]:
    """Read the rows of a manifest. Raises an InputError that names the first line that is not a row."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a manifest ({error.strerror})") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # somebody has saved it again, in another encoding
        text = decode_text(data)
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    if next(reader, None) != COLUMNS:
        raise InputError(f"{path} is not a manifest: its first line is not {','.join(COLUMNS)}")
    rows = []
    for cells in reader:
        try:
            rows.append(_row(cells))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {reader.line_num} is no row of a manifest ({error})") from error
    return rows


def _row(cells: Sequence[str]) -> Row:
    values: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    for name, default in asdict(Row("")).items():
        if not isinstance(default, str):
            values[name] = type(default)(float(values[name]) if isinstance(default, float) else int(values[name]))
    values["path"] = os.fsdecode(values["path"].encode("utf-8", "surrogateescape"))  # as an ASCII locale has it
    return Row(**values)
