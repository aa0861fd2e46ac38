"""A video to follow something through: its frames, the first one's label, and the other labels under seal.

A label after the first one can only be read through `Video.truth`, and only once there is a result for every frame:
what is scored cannot have looked. Nothing is ever written into a data set's folder.
"""

import re
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import InputError
from common.files import is_hidden, read_text
from common.words import counted

Frame = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Joints = NDArray[np.float64]
Label = NDArray[Any]  # a mask [H, W] uint8, or joints [J, 2] (x, y in pixels of the frames; NaN: not known)
Decode = Callable[[Sequence[int]], Iterator[Frame]]  # ascending numbers of frames → these frames, one by one

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Lost(NamedTuple):
    """A mask whose picture is missing: it stands before the picture with the number `before`."""

    before: int
    label: Callable[[], Label]


@dataclass(frozen=True)
class Video:
    """Pictures in order, or the frames of a video file: then `decode` gives them, and `paths` are the file's numbers.

    label: the true label of a frame, None where nobody labelled it. roots: folders of the data set, where nothing may
    be written. later: masks [H, W] of objects that start in later frames and are given there. lost: masks that count
    although their pictures are missing. notes: what must be said beside the score. check: raises InputError for what
    the headers of the files with labels show, before anything is followed.
    """

    name: str
    paths: tuple[Path, ...]
    first: Label
    label: Callable[[int], Label | None]
    roots: tuple[Path, ...] = ()
    decode: Decode | None = None
    later: Mapping[int, Mask] = field(default_factory=dict)
    lost: tuple[Lost, ...] = ()
    notes: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, chosen: Sequence[int] | None = None) -> Iterator[Frame]:
        """The frames one by one, RGB [H, W, 3], or the `chosen` ones (ascending); each is read when it is asked for."""
        numbers = range(len(self)) if chosen is None else chosen
        return self.decode(numbers) if self.decode else (read_frame(self.paths[number]) for number in numbers)

    def truth(self, results: Sequence[Label]) -> Iterator[tuple[int, Label, Label]]:
        """For results of *all* frames, the first included: (index, true label, result) of each labelled frame.

        A mask whose picture is missing has the index −1 and an empty result.
        """
        if len(results) != len(self):
            raise InputError(
                f"{self.name}: {len(results)} results for {len(self)} frames; the truth opens to a complete result only"
            )
        lost = list(self.lost)
        for index in range(len(self) + 1):
            while lost and lost[0].before == index:
                label = lost.pop(0).label()
                yield -1, label, np.zeros_like(label)
            if index < len(self) and (known := self.label(index)) is not None:
                yield index, known, results[index]


def _changed(change: Callable[[Mask], Mask], path: Path) -> Mask:
    return change(read_mask(path))


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """An InputError that says `what` was expected, for content of a file that cannot be taken apart inside."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{what} ({error!r})") from error


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
    every_mask: bool = False,
) -> Video:
    """Pictures and the masks that bear their names, changed by `change`; only the first mask is opened.

    every_mask: masks without a picture count as well, and pictures without a mask are noted.
    """
    paths = pictures_in(pictures)
    if not masks.is_dir():
        raise InputError(f"{name}: {masks} does not exist; expected the masks of {pictures}, named like its pictures")
    files = {path.stem: path for path in sorted(visible(masks), key=_natural) if path.suffix.lower() == ".png"}

    def label(index: int) -> Mask | None:
        file = files.get(paths[index].stem)
        if file is None:
            return None
        mask = read_mask(file)
        check_size(mask.shape, picture_size(paths[index]), paths[index], file)
        return change(mask)

    def check() -> None:
        for path in paths:
            if path.stem in files:
                check_size(_mask_size(files[path.stem]), size, path, files[path.stem])

    first = label(0)
    if first is None:
        raise InputError(
            f"{name}: {masks / paths[0].stem}.png does not exist, the mask of the first picture {paths[0]}"
        )
    size = first.shape
    check_mask(first, f"{files[paths[0].stem]}, the first mask of {name},")
    lost: tuple[Lost, ...] = ()
    notes = []
    if every_mask:
        keys, stems = [_natural(path) for path in paths], {path.stem for path in paths}
        alone = [path for stem, path in files.items() if stem not in stems]
        lost = tuple(Lost(bisect(keys, _natural(path)), partial(_changed, change, path)) for path in alone)
        if lost and not lost[0].before:
            raise InputError(f"{name}: {alone[0]} is the first mask, and its picture is missing: get it again")
        if lost:
            notes.append(
                f"{_some(alone)} without a picture: scored against an empty mask, since every mask counts officially"
            )
        if unmarked := [path for path in paths if path.stem not in files]:
            notes.append(f"{_some(unmarked)} without a mask: followed, but not scored, as by the official tool")
    return Video(name, paths, first, label, roots or (pictures, masks), lost=lost, notes=tuple(notes), check=check)


# ------------------------------------------------------------------------------------------------ files


def read_frame(path: Path) -> Frame:
    """A picture as RGB [H, W, 3]; 16-bit grey is brought to 8 bits (65535 becomes 255)."""
    picture = _open(path)
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def read_mask(path: Path, threshold: int | None = None) -> Mask:
    """A mask as label numbers [H, W]: a palette's indices or grey levels, never colours.

    threshold: what is at least as bright (0 … 255) is the object 1, for pictures that are no masks of numbers.
    """
    picture = _open(path)
    if threshold is not None:
        return (np.asarray(picture.convert("L")) >= threshold).astype(np.uint8)
    _check_mode(picture, path)
    if picture.mode == "LA":
        picture, alpha = picture.split()
        if len(np.unique(np.asarray(alpha))) > 1:
            raise InputError(f"{path} is grey with an alpha that varies; expected a mask whose grey level is the label")
    mask = np.asarray(picture)
    if picture.mode.startswith("I") and mask.max(initial=0) > 255:
        raise InputError(f"{path} holds the label {mask.max()} in 16 bits; expected label numbers up to 255")
    labels = len(np.unique(mask))
    if picture.format == "JPEG" and labels > 2:
        raise InputError(blurred(f"{path}", labels))
    return mask.astype(np.uint8)


def blurred(what: str, labels: int) -> str:
    """The message about a mask with so many labels that it looks like a picture."""
    return (
        f"{what} holds {labels} labels: is it a JPEG, or antialiased? Save a PNG whose pixels are the numbers of the "
        "objects, or take what is bright as one object, with --threshold 128"
    )


def read_list(path: Path) -> list[str]:
    """The non-empty lines of a list of videos."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except InputError as error:
        raise InputError(f"{error}: expected the list of videos there") from error
    if not any(lines):
        raise InputError(f"{path} names no video")
    return [line for line in lines if line]


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of the numbers in their names; there must be at least two."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: expected a folder with the pictures of a video")
    paths = sorted((path for path in visible(folder) if path.suffix.lower() in PICTURES), key=_natural)
    if len(paths) < 2:
        raise InputError(f"{folder} holds {counted(len(paths), 'picture')}; following needs at least 2")
    return tuple(paths)


def visible(folder: Path) -> list[Path]:
    """What a folder holds but for hidden names (.DS_Store, ._00000.jpg, .ipynb_checkpoints), sorted."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


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


def check_size(mask: Sequence[int], frame: Sequence[int], picture: Path, source: Path) -> None:
    """Raises `InputError` for a mask whose shape [H, W] is not that of its picture."""
    height, width = frame[:2]
    if tuple(mask) != (height, width):
        raise InputError(f"{source} is {mask[0]}×{mask[1]}, but its picture {picture} is {height}×{width}")


def _check_mode(picture: Image.Image, path: Path) -> None:
    if picture.mode not in ("1", "P", "L", "LA") and not picture.mode.startswith("I"):
        what = "32-bit" if picture.mode == "F" else f"a colour picture ({picture.mode})"
        raise InputError(f"{path} is {what}; expected a mask whose pixel is the label: a palette PNG or a grey one")


def picture_size(path: Path) -> tuple[int, int]:
    """The shape (height, width) that a picture's header tells."""
    picture = _open(path, load=False)
    return picture.height, picture.width


def _mask_size(path: Path) -> tuple[int, int]:
    """The shape [H, W] that a mask's header tells; InputError for a header that is not a mask's."""
    picture = _open(path, load=False)
    _check_mode(picture, path)
    return picture.height, picture.width


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return names if len(paths) < 4 else f"{names} and {len(paths) - 3} more"


def _open(path: Path, load: bool = True) -> Image.Image:
    try:
        with open(path, "rb") as file:
            picture = Image.open(file)
            if load:
                picture.load()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is damaged or no picture ({error}): get it again") from error
    return picture


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which 2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
