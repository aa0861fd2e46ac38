"""Text files that list videos: one path a line, alone or with a label behind it, or Kinetics' own tables.

A path counts from the folder of the list. Labels are left out: nothing here is supervised.
"""

import csv
import os
import re
from pathlib import Path

from common.errors import InputError
from common.files import existing_path, read_text
from dataset_loader.files import PACKED_SUFFIX, SUFFIXES, search

_ENDS = "|".join(re.escape(suffix) for suffix in sorted({*SUFFIXES, PACKED_SUFFIX}))
LINE = re.compile(rf"""\s*["']?(?P<path>.+?(?:{_ENDS}))["']?(?P<label>\s*[\s,;].*)?""", re.IGNORECASE)


def read_list(path: str | Path) -> tuple[list[str], str] | None:
    """The files that a list names, and what is to be said of it; None of a ledger or of something else.

    Lines are a path, or `path label` as in VideoMAE's lists, separated by blanks, commas or semicolons, perhaps below a
    header; or rows of Kinetics' tables, whose videos are looked for below the folder of the list. Raises InputError
    with the number of a line that names no video.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    folder = os.path.dirname(path)
    if lines and "youtube_id" in lines[0][1]:
        return _kinetics(path, folder, [line for _, line in lines])
    if not any(LINE.fullmatch(line) for _, line in lines[:2]):
        return None
    if not LINE.fullmatch(lines[0][1]):
        del lines[0]  # a header
    found, labels = [], 0
    for number, line in lines:
        whole = existing_path(folder, line.strip())
        if os.path.exists(whole):  # whatever its name looks like
            found.append(whole)
        elif parts := LINE.fullmatch(line):
            found.append(existing_path(folder, parts["path"]))
            labels += bool((parts["label"] or "").strip(" \t,;"))
        else:
            raise InputError(f"{path}, line {number}: {line!r} names no video; expected a path, and perhaps a label")
    return found, f" ({labels} labels in {path} are left out)" if labels else ""


def _kinetics(path: str | Path, folder: str, lines: list[str]) -> tuple[list[str], str]:
    """label,youtube_id,time_start,time_end,split: files are named <id>_<start>_<end>, six digits each, or <id>."""
    there = {os.path.splitext(os.path.basename(video))[0]: video for video in search(folder or ".").videos}
    rows, found, wanted = list(csv.DictReader(lines)), [], ""
    for number, row in enumerate(rows, 2):
        try:
            wanted = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path}, line {number} is no row of a Kinetics table; expected youtube_id, time_start and time_end"
            ) from None
        if video := there.get(wanted) or there.get(row["youtube_id"]):
            found.append(video)
    if not found:
        raise InputError(
            f"none of the {len(rows)} videos in {path} lies below {folder or '.'}, for example {wanted}.mp4"
        )
    return found, f" (of {len(rows)} in {path}, whose labels are left out)"
