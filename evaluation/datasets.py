"""Readers of the benchmarks: each yields videos with their frames and their first label; the rest is sealed.

A label after the first one can only be read through `Video.truth`, and that only once a result for every frame has been
handed in: what is scored cannot have looked. Nothing is ever written into a data set's folder.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import InputError
from evaluation.labels import check_mask

Frame = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Joints = NDArray[np.float64]
Label = TypeVar("Label")
Decode = Callable[[Sequence[int]], Iterator[Frame]]  # ascending numbers of frames → these frames, one by one

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIP_CLASSES = 20  # background included
CAMVID_CLASSES = 11  # 11 itself is void


@dataclass(frozen=True)
class Video(Generic[Label]):
    """A video to follow something through: pictures in order, the first one's label, and the others' under seal.

    A label is a mask [H, W] uint8, or joints [J, 2] (x, y in pixels of the frames; NaN: not known). The frames of a
    video file have no pictures: `_decode` gives them, and `paths` are the file and their numbers.
    """

    name: str
    paths: tuple[Path, ...]
    first: Label
    _label: Callable[[int], Label | None]
    roots: tuple[Path, ...] = ()  # the data set's folders, where nobody may write
    _decode: Decode | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, chosen: Sequence[int] | None = None) -> Iterator[Frame]:
        """The frames one by one, RGB [H, W, 3], or the `chosen` ones (ascending); each is read when it is asked for."""
        numbers = range(len(self)) if chosen is None else chosen
        return self._decode(numbers) if self._decode else (read_frame(self.paths[number]) for number in numbers)

    def truth(self, results: Sequence[Label]) -> Iterator[tuple[int, Label, Label]]:
        """For results of *all* frames (the first one's label among them): index, true label and result, frame by frame.

        Frames that nobody labelled are left out.
        """
        if len(results) != len(self):
            raise InputError(
                f"{self.name}: {len(results)} results for {len(self)} frames; the truth opens to a complete result only"
            )
        for index, result in enumerate(results):
            label = self._label(index)
            if label is not None:
                yield index, label, result


def select(listed: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the listed videos that have one of the names, all without any; an InputError says what is not there."""
    missing = set(names) - set(listed)
    if missing:
        raise InputError(f"there is no video called {', '.join(sorted(missing))} among those of the list")
    return [name for name in listed if not names or name in names]


# ------------------------------------------------------------------------------------------------ objects and parts


def davis(
    root: str | Path, year: int = 2017, split: str = "val", resolution: str = "480p", names: Sequence[str] = ()
) -> Iterator[Video[Mask]]:
    """DAVIS of 2016 or 2017: `{JPEGImages,Annotations}/480p/<sequence>/`, `ImageSets/<year>/<split>.txt`.

    names, in every reader: only these videos; nothing of the others need be there.

    2016 has one object, whatever its grey level. In 2017 the pixel is the object and 255 is void, which the official
    tool counts as background; the objects are 1 … the first mask's largest, so that later ones are not scored, and
    one that never appears scores 1.
    """
    root = Path(root)
    listed, other = (root / "ImageSets" / str(y) / f"{split}.txt" for y in (year, 4033 - year))
    if other.is_file() and not listed.exists():
        raise InputError(f"{listed} does not exist, but {other} does: give year {4033 - year}")
    for name in select(read_list(listed), names):
        pictures, masks = (root / kind / resolution / name for kind in ("JPEGImages", "Annotations"))
        yield mask_video(name, pictures, masks, _binary if year == 2016 else _without_void, roots=(root,))


def vip(root: str | Path, split: str = "val", names: Sequence[str] = ()) -> Iterator[Video[Mask]]:
    """VIP (human parts): `Images/<video>/`, `Annotations/Category_ids/<video>/`, `lists/<split>_videos.txt`."""
    root = Path(root)
    for name in select(read_list(root / "lists" / f"{split}_videos.txt"), names):
        yield mask_video(name, root / "Images" / name, root / "Annotations" / "Category_ids" / name, roots=(root,))


def dense_labels(root: str | Path, names: Sequence[str] = ()) -> Iterator[Video[Mask]]:
    """CamVid's kind: `frames/` and `labels/`, pictures directly in them (one video) or in a folder per video."""
    root = Path(root)
    if not (root / "frames").is_dir() or not (root / "labels").is_dir():
        raise InputError(f"{root} lacks the folders frames/ and labels/ of densely labelled video")
    folders = sorted(path.name for path in (root / "frames").iterdir() if path.is_dir())
    for name in select(folders or [root.name], names):
        place = name if folders else ""
        yield mask_video(name, root / "frames" / place, root / "labels" / place, roots=(root,))


def folder(pictures: str | Path, mask: str | Path) -> Video[Mask]:
    """Anyone's pictures and the mask of the first of them; nothing to score against."""
    pictures = Path(pictures)
    return _own(pictures.name, _pictures(pictures), Path(mask), (pictures,))


def recording(file: str | Path, frames: int, decode: Decode, mask: str | Path) -> Video[Mask]:
    """Anyone's video file, of which `decode` gives the frames, and the mask of the first; nothing to score against."""
    file = Path(file)
    if frames < 2:
        raise InputError(f"{file} has {frames} frame{'s' * (frames != 1)}; following needs at least 2")
    paths = tuple(file / f"{number:05d}" for number in range(frames))
    return _own(file.stem, paths, Path(mask), _around(file), decode)


def _own(
    name: str, paths: tuple[Path, ...], mask: Path, roots: tuple[Path, ...], decode: Decode | None = None
) -> Video[Mask]:
    first = read_mask(mask)
    check_mask(first, str(mask))
    video = Video(name, paths, first, lambda index: first if index == 0 else None, (*roots, *_around(mask)), decode)
    _check_size(first, next(video.frames([0])), paths[0], mask)
    return video


def mask_video(
    name: str,
    pictures: Path,
    masks: Path,
    change: Callable[[Mask], Mask] = lambda mask: mask,
    *,
    roots: tuple[Path, ...] = (),
) -> Video[Mask]:
    """Pictures and the masks that bear their names, changed by `change`; only the first mask is opened."""
    paths = _pictures(pictures)
    if not masks.is_dir():
        raise InputError(f"{name}: {masks} does not exist; expected the masks of {pictures}, named like its pictures")
    files = {path.stem: path for path in masks.iterdir() if path.suffix.lower() == ".png"}

    def label(index: int) -> Mask | None:
        file = files.get(paths[index].stem)
        if file is None:
            return None
        mask = read_mask(file)
        _check_size(mask, read_frame(paths[index]), paths[index], file)
        return change(mask)

    first = label(0)
    if first is None:
        raise InputError(
            f"{name}: {masks / paths[0].stem}.png does not exist, the mask of the first picture {paths[0]}"
        )
    check_mask(first, f"{files[paths[0].stem]}, the first mask of {name},")
    return Video(name, paths, first, label, roots or (pictures, masks))


# ------------------------------------------------------------------------------------------------ joints


def jhmdb(root: str | Path, split: int = 1, names: Sequence[str] = ()) -> Iterator[Video[Joints]]:
    """JHMDB's test videos: `Rename_Images/<class>/<clip>/`, `joint_positions/<class>/<clip>/joint_positions.mat`, and
    lists `<class>_test_split1.txt`, in `splits/` or beside them, that end a test video's line in 2.
    """
    root = Path(root)
    pattern = f"*_test_split{split}.txt"
    lists = sorted((root / "splits").glob(pattern)) or sorted(root.glob(pattern))
    if not lists:
        raise InputError(
            f"{root} holds no list {pattern}, nor does {root / 'splits'}: expected JHMDB's split lists there"
        )
    listed = []
    for file in lists:
        for line in read_list(file):
            clip, _, part = line.partition(" ")
            if part.strip() == "2":
                listed.append(f"{file.name.removesuffix(pattern[1:])}/{Path(clip).stem}")
    for name in select(listed, names):
        joints = read_joint_positions(root / "joint_positions" / name / "joint_positions.mat")
        paths = _pictures(root / "Rename_Images" / name)[: len(joints)]
        if len(paths) < len(joints):
            raise InputError(f"{name} has {len(joints)} frames with joints but {len(paths)} pictures")
        yield Video(name, paths, joints[0], joints.__getitem__, (root,))


def read_joint_positions(path: Path) -> NDArray[np.float64]:
    """`pos_img` of a JHMDB file, [2, 15, T] counted from 1 → joints [T, 15, 2] counted from 0."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path} does not exist: expected the joints of a JHMDB clip")
    try:
        positions = np.asarray(loadmat(path)["pos_img"], dtype=np.float64)
    except KeyError as error:
        raise InputError(f"{path} holds no pos_img: expected the joints of a JHMDB clip, [2, 15, frames]") from error
    except Exception as error:  # a damaged file can break the reader in any way
        raise InputError(f"{path} is damaged or cut off ({error}): get it again") from error
    if positions.ndim == 2:  # MATLAB drops a last axis of one frame
        positions = positions[..., None]
    if positions.ndim != 3 or positions.shape[0] != 2:
        raise InputError(f"{path}: pos_img has shape {positions.shape}; expected [2, 15, frames]")
    return positions.transpose(2, 1, 0) - 1


def keypoints(file: str | Path, pictures: str | Path, names: Sequence[str] = ()) -> Iterator[Video[Joints]]:
    """Keypoints in JSON: {"joints": {id: name}, "sequences": {sequence: [{"frame": stem, "joints": {id: [x, y]}}]}}.

    Pictures lie in `<pictures>/<sequence>/`. A video starts at its first labelled frame; its joints are those of the
    file in order, NaN where a frame lacks them.
    """
    file = Path(file)
    try:
        content: Any = json.loads(file.read_text())
        ids = list(content["joints"])
        marked = {
            name: {entry["frame"]: entry["joints"] for entry in entries}
            for name, entries in content["sequences"].items()
        }
        labels = {
            name: {stem: _joints_in_order(found, ids) for stem, found in frames.items()}
            for name, frames in marked.items()
        }
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a file of keypoints: {_expected(keypoints)} ({error!r})") from error
    for name in select(list(labels), names):
        known, paths = labels[name], _pictures(Path(pictures) / name)
        start = next((index for index, path in enumerate(paths) if path.stem in known), None)
        if start is None:
            raise InputError(f"{file}: none of the frames of {name} is a picture in {Path(pictures) / name}")
        paths = paths[start:]
        truths = [known.get(path.stem) for path in paths]
        yield Video(name, paths, known[paths[0].stem], truths.__getitem__, (Path(pictures), *_around(file)))


def _joints_in_order(found: dict[str, list[float]], ids: list[str]) -> Joints:
    unknown = set(found) - set(ids)
    if unknown:
        raise ValueError(f"joints {sorted(unknown)} are not declared")
    return np.array([found.get(joint, (np.nan, np.nan)) for joint in ids], dtype=np.float64).reshape(len(ids), 2)


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


def _pictures(where: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of the numbers in their names; there must be at least two."""
    if not where.is_dir():
        raise InputError(f"{where} does not exist: expected a folder with the pictures of a video")
    paths = sorted((path for path in where.iterdir() if path.suffix.lower() in PICTURES), key=_natural)
    if len(paths) < 2:
        raise InputError(f"{where} holds {len(paths)} picture{'s' * (len(paths) != 1)}; following needs at least 2")
    return tuple(paths)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which 2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _around(file: Path) -> tuple[Path, ...]:
    """The folder of a file, as a data set's; not one in which the person works, who may well put results there."""
    parent = file.resolve().parent
    return () if Path.cwd().is_relative_to(parent) else (parent,)


def _check_size(mask: Mask, frame: Frame, picture: Path, source: Path) -> None:
    height, width = frame.shape[:2]
    if mask.shape != (height, width):
        raise InputError(f"{source} is {mask.shape[0]}×{mask.shape[1]}, but its picture {picture} is {height}×{width}")


def _without_void(mask: Mask) -> Mask:
    return np.where(mask == 255, 0, mask).astype(np.uint8)


def _binary(mask: Mask) -> Mask:
    return (mask > 0).astype(np.uint8)


def _expected(reader: Callable) -> str:
    return "expected " + (reader.__doc__ or "").partition("\n")[0].partition(": ")[2]
