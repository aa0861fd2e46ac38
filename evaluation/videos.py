"""A video to follow something through: its frames, the first one's label, and the other labels under seal.

A label after the first one can only be read through `Video.truth`, and only once there is a result for every frame:
what is scored cannot have looked. Nothing is ever written into a data set's folder.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import InputError

Frame = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Joints = NDArray[np.float64]
Label = NDArray[Any]  # a mask [H, W] uint8, or joints [J, 2] (x, y in pixels of the frames; NaN: not known)
Decode = Callable[[Sequence[int]], Iterator[Frame]]  # ascending numbers of frames → these frames, one by one

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Video:
    """Pictures in order, or the frames of a video file: then `decode` gives them, and `paths` are the file's numbers.

    label: the true label of a frame, None where nobody labelled it. roots: folders of the data set, where nothing may
    be written.
    """

    name: str
    paths: tuple[Path, ...]
    first: Label
    label: Callable[[int], Label | None]
    roots: tuple[Path, ...] = ()
    decode: Decode | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, chosen: Sequence[int] | None = None) -> Iterator[Frame]:
        """The frames one by one, RGB [H, W, 3], or the `chosen` ones (ascending); each is read when it is asked for."""
        numbers = range(len(self)) if chosen is None else chosen
        return self.decode(numbers) if self.decode else (read_frame(self.paths[number]) for number in numbers)

    def truth(self, results: Sequence[Label]) -> Iterator[tuple[int, Label, Label]]:
        """For results of *all* frames, the first included: (index, true label, result) of each labelled frame."""
        if len(results) != len(self):
            raise InputError(
                f"{self.name}: {len(results)} results for {len(self)} frames; the truth opens to a complete result only"
            )
        for index, result in enumerate(results):
            label = self.label(index)
            if label is not None:
                yield index, label, result


def select(listed: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the listed videos that have one of the names, all without any; an InputError says what is not there."""
    missing = set(names) - set(listed)
    if missing:
        raise InputError(f"there is no video called {', '.join(sorted(missing))} among those of the list")
    return [name for name in listed if not names or name in names]


def mask_video(
    name: str,
    pictures: Path,
    masks: Path,
    change: Callable[[Mask], Mask] = lambda mask: mask,
    *,
    roots: tuple[Path, ...] = (),
) -> Video:
    """Pictures and the masks that bear their names, changed by `change`; only the first mask is opened."""
    paths = pictures_in(pictures)
    if not masks.is_dir():
        raise InputError(f"{name}: {masks} does not exist; expected the masks of {pictures}, named like its pictures")
    files = {path.stem: path for path in masks.iterdir() if path.suffix.lower() == ".png"}

    def label(index: int) -> Mask | None:
        file = files.get(paths[index].stem)
        if file is None:
            return None
        mask = read_mask(file)
        check_size(mask, read_frame(paths[index]), paths[index], file)
        return change(mask)

    first = label(0)
    if first is None:
        raise InputError(
            f"{name}: {masks / paths[0].stem}.png does not exist, the mask of the first picture {paths[0]}"
        )
    check_mask(first, f"{files[paths[0].stem]}, the first mask of {name},")
    return Video(name, paths, first, label, roots or (pictures, masks))


# ------------------------------------------------------------------------------------------------ files


def read_frame(path: Path) -> Frame:
    """A picture as RGB [H, W, 3]."""
    return np.asarray(_open(path).convert("RGB"))


def read_mask(path: Path) -> Mask:
    """A mask as label numbers [H, W]: a palette's indices or 8-bit grey levels, never colours."""
    picture = _open(path)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("P", "L"):
        return np.asarray(picture)
    what = "16-bit or 32-bit" if picture.mode.startswith(("I", "F")) else f"a colour picture ({picture.mode})"
    raise InputError(f"{path} is {what}; expected a mask whose 8-bit pixel is the label: a palette PNG or a grey one")


def read_list(path: Path) -> list[str]:
    """The non-empty lines of a list of videos."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected the list of videos there") from error
    if not any(lines):
        raise InputError(f"{path} names no video")
    return [line for line in lines if line]


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of the numbers in their names; there must be at least two."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: expected a folder with the pictures of a video")
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=_natural)
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} picture{'s' * (len(paths) != 1)}; following needs at least 2")
    return tuple(paths)


def folder_of(file: Path) -> tuple[Path, ...]:
    """The folder of a single file, as a data set's; not one in which the user works and may well put results."""
    parent = file.resolve().parent
    return () if Path.cwd().is_relative_to(parent) else (parent,)


def check_mask(mask: Mask, source: str) -> None:
    """Raises `InputError` for a first mask in which there is nothing to follow."""
    if not mask.any():
        raise InputError(
            f"{source} marks nothing to follow: every pixel is background (0), or 255, which is void in DAVIS 2017 "
            "(masks of 0 and 255 are those of DAVIS 2016)"
        )


def check_size(mask: Mask, frame: Frame, picture: Path, source: Path) -> None:
    """Raises `InputError` for a mask that is not as large as its picture."""
    height, width = frame.shape[:2]
    if mask.shape != (height, width):
        raise InputError(f"{source} is {mask.shape[0]}×{mask.shape[1]}, but its picture {picture} is {height}×{width}")


def _open(path: Path) -> Image.Image:
    try:
        with open(path, "rb") as file:
            picture = Image.open(file)
            picture.load()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is damaged or no picture ({error}): get it again") from error
    return picture


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which 2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
