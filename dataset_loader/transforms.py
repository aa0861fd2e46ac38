"""Cropping, resizing, flipping and more: one draw for all frames of a sample. Pixels stay uint8; the model normalises.

What is drawn is a `View`; `apply_view` applies it to the frames of one sample.

Legend: F frames of a sample, H W pixels of a frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from common.errors import InputError
from mae.patches import IMAGENET_MEAN, IMAGENET_STD, denormalize

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


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a sample, and from which range.

    scale, ratio: the crop's share of the area and its width / height. flip: the probability of mirroring. rotation: up
    to so many degrees either way, around the centre, before the crop; corners that the frame does not reach are black.
    rotation_each: each frame of a sample by an angle of its own.
    brightness, contrast, saturation: factors from 1 - x to 1 + x; hue: a shift of up to so much of the colour circle
    either way.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    rotation_each: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        limits = {"flip": 1.0, "rotation": 180.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 0 to {most:g}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"scale {self.scale} must ascend within 0…1, and ratio {self.ratio} ascend above 0")


@dataclass(frozen=True)
class View:
    """How the frames of a sample are to be seen: turned, cut, mirrored, recoloured."""

    crop: Crop
    degrees: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def draw_colours(crop: Crop, generator: np.random.Generator, augmentation: Augmentation) -> View:
    """A view with this crop: draw whatever else the augmentation asks for, rotation and colours."""

    def around(middle: float, most: float) -> float:
        return float(generator.uniform(middle - most, middle + most)) if most else middle

    return View(
        crop,
        around(0.0, augmentation.rotation),
        around(1.0, augmentation.brightness),
        around(1.0, augmentation.contrast),
        around(1.0, augmentation.saturation),
        around(0.0, augmentation.hue),
    )


def centre_view(height: int, width: int) -> View:
    """The central square as it is: what validation looks at."""
    side = min(height, width)
    return View(Crop((height - side) // 2, (width - side) // 2, side, side))


def apply_view(frames: np.ndarray, view: View, size: int) -> Tensor:
    """Show uint8 frames [F, H, W, 3] as the view says, scaled bicubically: uint8 [F, 3, size, size].

    The channels stay last in memory: torch resizes that, as uint8, several times faster than planes.
    """
    images, crop = torch.from_numpy(frames).permute(0, 3, 1, 2), view.crop
    if view.degrees:
        images = F.rotate(images, view.degrees, interpolation=InterpolationMode.BILINEAR)
        images = images.contiguous(memory_format=torch.channels_last)
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
    images = F.horizontal_flip(images) if crop.flip else images
    if view.brightness != 1:
        images = F.adjust_brightness(images, view.brightness)
    if view.contrast != 1:
        images = F.adjust_contrast(images, view.contrast)
    if view.saturation != 1:
        images = F.adjust_saturation(images, view.saturation)
    return F.adjust_hue(images, view.hue) if view.hue else images


def unnormalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Undo a model's normalisation: floats [..., 3, H, W] → the same shape, pixels in [0, 1].

    mean, std: the model's own statistics; the defaults are ImageNet's, those of MAE and SiamMAE. MAE-ST has others:
    `mae.patches.MAE_ST_MEAN` and `MAE_ST_STD`.
    """
    return denormalize(images, mean, std)


def unnormalize_for_plot(
    images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> np.ndarray:
    """Normalised floats [..., 3, H, W] → uint8 [..., H, W, 3] for a figure, clipped where a prediction overshoots."""
    pixels = unnormalize(images.detach().float().cpu(), mean, std).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).movedim(-3, -1).numpy()
