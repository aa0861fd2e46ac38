"""Ledgers: lists of frame folders as the public MAE3D work has them.

A line is `name first last class`, separated by blanks or commas; the first line may be a header. `name` is a folder
below the root, `first` and `last` are the numbers of its frames, both included.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_text
from dataset_loader.decoding import DecodeError
from dataset_loader.files import Names
from dataset_loader.frame_folders import FrameClip, check_template

LOOKED_AT = 1000  # lines whose folders are listed at once; looking at 240,000 of them would take minutes


class Ledger:
    """The clips of a ledger, a `Source`. See the top of this file for its format.

    root: the folder that holds the frame folders. template: the names of the frames, such as "img_{:05d}.jpg"; None
    finds it out for each folder. fps: the rate of frames without times. complete: every frame from the first to the
    last must be there; else a missing one leaves a gap in time. Raises InputError with the number of the line for one
    that cannot be read, or does not fit its folder; a folder behind the first LOOKED_AT is looked at when it is opened,
    and then raises DecodeError.
    """

    def __init__(
        self,
        root: str | Path,
        path: str | Path,
        *,
        template: str | None = None,
        fps: float = 30,
        complete: bool = False,
    ) -> None:
        if template is not None:
            check_template(template)
        self.path = str(path)
        self.fps = fps
        self.complete = complete
        self.labels: list[int | list[int]] = []
        self._template = template
        folders, first, last, lines = [], [], [], []
        for line, fields in _lines(path):
            where = f"{path}, line {line}"
            try:
                name, (start, end, *classes) = fields[0], (int(field) for field in fields[1:])
            except ValueError:
                raise InputError(
                    f"{where}: {' '.join(fields)!r} is not 'name first last class', separated by blanks or by commas"
                ) from None
            if start > end:
                raise InputError(f"{where}: the first frame of {name} is {start}, the last {end}")
            folders.append(os.path.join(root, name))
            first.append(start)
            last.append(end)
            lines.append(line)
            self.labels.append(classes[0] if len(classes) == 1 else classes)
        if not folders:
            raise InputError(f"{path} names no video")
        self.names = Names(folders)
        self.first, self.last, self._lines = np.array(first), np.array(last), np.array(lines)
        for number in range(min(len(folders), LOOKED_AT)):
            try:
                fault = self._fault(number, self._clip(number))
            except DecodeError as error:
                fault = str(error)
            if fault:
                raise InputError(f"{path}, line {lines[number]}: {fault}")

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> FrameClip:
        clip = self._clip(number)
        if fault := self._fault(number, clip):
            raise DecodeError(clip.path, f"does not fit {self.path}, line {self._lines[number]}: {fault}")
        return clip

    def _clip(self, number: int) -> FrameClip:
        first, last = int(self.first[number]), int(self.last[number])
        return FrameClip(self.names[number], self.fps, self._template, first, last)

    def _fault(self, number: int, clip: FrameClip) -> str:
        """In what a folder differs from its line; empty if in nothing."""
        first, last = int(self.first[number]), int(self.last[number])
        missing = sorted({first, last, *(range(first, last) if self.complete else ())} - set(clip.numbers.tolist()))
        if not missing:
            return ""
        if missing[0] in (first, last):
            low, high = (clip.template.format(end) for end in clip.held)
            return f"frame {missing[0]} of {clip.path} is not there, which holds {low} to {high}"
        return (
            f"{clip.path} lacks {clip.template.format(missing[0])} ({len(missing)} of its frames {first} to {last}), "
            "and segments are of consecutive frames; complete it, or leave the line out"
        )

    def __str__(self) -> str:
        return f"{len(self)} clips of the ledger {self.path}, at fps={self.fps:g} where nothing tells their times"


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(number from 1 on, fields) of the lines of a ledger that name a clip."""
    headed = True
    for number, line in enumerate(read_text(path).split("\n"), 1):
        fields = [field.strip().strip('"') for field in line.split(",")] if "," in line else line.split()
        if not any(fields):
            continue
        header = headed and len(fields) > 1 and not any(field.lstrip("-").isdigit() for field in fields[1:])
        headed = False
        if not header:
            yield number, fields
