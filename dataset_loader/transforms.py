"""Cropping, resizing and flipping: one draw for all frames of a pair. Pixels stay uint8; the model normalises them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

TRIES = 10  # of finding a rectangle that lies within the image, before the central one is taken


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def draw_crop(
    height: int,
    width: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Crop:
    """Draw a rectangle with a share of the area uniform in `scale` and a width/height log-uniform in `ratio`.

    If none of a few tries lies within the image, the largest central rectangle with an allowed ratio is taken: the
    random resized crop of Szegedy et al. 2015, as MAE and SiamMAE use it. flip: the probability of mirroring.
    """
    flipped = bool(generator.random() < flip)
    for _ in range(TRIES):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
            return Crop(int(top), int(left), h, w, flipped)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    return Crop((height - h) // 2, (width - w) // 2, h, w, flipped)


def centre_crop(height: int, width: int) -> Crop:
    """The central square of an image: what validation looks at."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def apply_crop(frames: np.ndarray, crop: Crop, size: int) -> Tensor:
    """Cut the same rectangle from uint8 frames [F, H, W, 3] and scale it bicubically: uint8 [F, 3, size, size]."""
    # A view with the channels last in memory: torch resizes that, as uint8, several times faster than planes.
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    images = F.resized_crop(
        images,
        crop.top,
        crop.left,
        crop.height,
        crop.width,
        [size, size],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return F.horizontal_flip(images) if crop.flip else images
