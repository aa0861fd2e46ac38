"""Single pictures as data: each is a video of one frame, of which pairings such as `crops` and `shifted` make pairs.

JPEG, PNG, WebP, TIFF and BMP, turned upright as their EXIF says, grey and 16 bit as RGB in 8 bit.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.files import is_hidden
from dataset_loader.decoding import DecodeError
from dataset_loader.files import IMAGE_SUFFIXES
from dataset_loader.images import to_rgb

SHORT_SIDE = 512  # pictures are shrunk to this: more than any crop needs, and a hundred times quicker to cut than 24 MP
PIXELS = 200_000_000  # a picture with more is refused: one such takes 600 MB


class Picture:
    """One picture as a clip of one frame, a context manager."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.times = np.zeros(1)

    def __enter__(self) -> "Picture":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frames(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture for each number, all of which are 0: uint8 RGB [n, H, W, 3], and their times [n]."""
        image = decode_picture(self.path)
        return np.repeat(image[None], len(numbers), axis=0), self.times[numbers]


def decode_picture(path: str, short_side: int = SHORT_SIDE) -> np.ndarray:
    """uint8 RGB [H, W, 3], upright, its shorter side shrunk to `short_side` if it is longer. Raises DecodeError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXELS:
                raise DecodeError(path, f"has {image.width}×{image.height} pixels; at most {PIXELS:,} are read")
            shrink = min(image.size) / short_side
            if shrink > 1:
                image.draft(None, (image.width * short_side // min(image.size), short_side))  # JPEG: decode less
            exif = image.getexif()  # what is converted may have lost it
            picture = to_rgb(image)
            picture.info["exif"] = exif.tobytes()
            picture = ImageOps.exif_transpose(picture)
            shrink = min(picture.size) / short_side
            if shrink > 1:
                size = (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink)))
                picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            return np.array(picture)
    except DecodeError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(path, f"cannot be decoded ({error})") from error


def find_pictures(folder: str | Path) -> list[str]:
    """The picture files below a folder, links followed and hidden names left out; sorted, not opened."""
    found, entered = [], set()
    for top, below, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(top))
        below[:] = [n for n in below if not is_hidden(n) and os.path.realpath(os.path.join(top, n)) not in entered]
        pictures = (n for n in names if not is_hidden(n) and os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES)
        found += [os.path.join(top, n) for n in pictures]
    return sorted(found)
