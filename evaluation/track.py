"""Anyone's own objects through anyone's own frames: marks to a first mask, and each frame beside its mask."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from common.errors import InputError
from evaluation.features import Source
from evaluation.follow import follow_mask
from evaluation.labels import mask_to_patches
from evaluation.protocols import Protocol
from evaluation.videos import Frame, Mask, blurred, check_mask

POINT_RADIUS = 1 / 20  # of the frame's short side: reaches the centre of a square patch where 15 lie along that side


def track(
    frames: Iterable[Frame], first: Mask, source: Source, protocol: Protocol, *, batch: int = 1
) -> Generator[tuple[Frame, Mask], None, None]:
    """RGB frames [H, W, 3] and the first one's mask [H, W] → each frame with its mask, the first pair included.

    No more than the batches that are read ahead are held. Raises InputError for a mask of another size, an empty one,
    and an object that is too small to be seen on the patch grid.
    """
    stream = iter(frames)
    opening = next(stream, None)
    if opening is None:
        raise InputError("there is no frame")
    if first.shape != opening.shape[:2]:
        sizes = ["×".join(map(str, shape)) for shape in (first.shape, opening.shape[:2])]
        raise InputError(f"the mask is {sizes[0]}, but the first frame is {sizes[1]} (height × width)")
    check_mask(first, "the first mask")
    _check_visible(first, source.patch_size, protocol)
    waiting: deque[Frame] = deque()

    def remembered() -> Iterator[Frame]:
        for frame in stream:
            waiting.append(frame)
            yield frame

    yield opening, first
    everything = chain([opening], remembered())
    options: dict[str, Any] = dict(patch_size=source.patch_size, batch=batch, affinity=source.affinity)
    for mask in follow_mask(everything, first, source.encode, protocol, **options):
        yield waiting.popleft(), mask


def points_to_mask(points: Iterable[str], size: tuple[int, int]) -> Mask:
    """Marks "x,y,label" (label 1 to 255; 1 if left out) in a frame of size (height, width) → its mask [H, W].

    Each is a disk of a twentieth of the short side around the point; where disks meet, the later one lies on top.
    """
    height, width = size
    mask = np.zeros(size, dtype=np.uint8)
    y, x = np.ogrid[:height, :width]
    for point in points:
        parts = point.split(",")
        try:
            column, row, label = float(parts[0]), float(parts[1]), int(parts[2]) if len(parts) == 3 else 1
            if len(parts) not in (2, 3) or not 1 <= label <= 255:
                raise ValueError
        except (ValueError, IndexError):
            raise InputError(
                f"the point {point!r} is not x,y,label, such as 120,80,1 with a label of 1 to 255"
            ) from None
        if not (0 <= column < width and 0 <= row < height):
            raise InputError(f"the point {point!r} lies outside of the frame, which is {width} wide and {height} high")
        mask[(x - column) ** 2 + (y - row) ** 2 <= (POINT_RADIUS * min(size)) ** 2] = label
        mask[int(row), int(column)] = label  # in the smallest of frames the disk may hold no pixel
    return mask


def _check_visible(first: Mask, patch_size: int, protocol: Protocol) -> None:
    size = protocol.input_size(first.shape[0], first.shape[1], patch_size)
    grid = (size[0] // patch_size, size[1] // patch_size)
    soft, values = mask_to_patches(first, grid, size, protocol)
    seen = soft.amax((0, 1))
    lost = [str(value) for value, most in zip(values, seen, strict=True) if value and not most]
    if len(lost) > 5:
        raise InputError(blurred("the first mask", len(values)))
    if lost:
        raise InputError(
            f"the object {', '.join(lost)} of the first mask covers the centre of none of the {grid[0]}×{grid[1]} "
            "patches and would be lost: mark more of it, or take a larger size or smaller patches"
        )
