"""Cropping, resizing, flipping and more: one draw for all frames of a sample. Pixels stay uint8; the model normalises.

What is drawn is a `View`. `apply_view` applies it to the frames of one sample on the CPU; `apply_views` to a batch of
frames of different sizes on any device, with the same result up to rounding.

Legend: B samples in a batch, F frames of a sample, H W pixels of a frame, S side of what leaves here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from common.errors import InputError

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


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a sample, and from which range.

    scale, ratio: the crop's share of the area and its width / height. flip: the probability of mirroring. rotation: up
    to so many degrees either way, around the centre, before the crop; corners that the frame does not reach are black.
    brightness, contrast, saturation: factors from 1 - x to 1 + x; hue: a shift of up to so much of the colour circle
    either way.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
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

    def as_tensor(self, height: int, width: int) -> Tensor:
        """float64 [12] for a batch: the frame's size, then the fields of the crop and of the view."""
        crop, colours = self.crop, (self.brightness, self.contrast, self.saturation, self.hue)
        box = (crop.top, crop.left, crop.height, crop.width, crop.flip)
        return torch.tensor([height, width, *box, self.degrees, *colours], dtype=torch.float64)

    @staticmethod
    def from_tensor(numbers: Tensor) -> tuple["View", int, int]:
        """Back from `as_tensor`: the view, and the frame's height and width."""
        height, width, top, left, h, w, flip, *rest = numbers.tolist()
        return View(Crop(int(top), int(left), int(h), int(w), bool(flip)), *rest), int(height), int(width)


def draw_view(height: int, width: int, generator: np.random.Generator, augmentation: Augmentation) -> View:
    """Draw a crop, and whatever else the augmentation asks for."""
    crop = draw_crop(height, width, generator, augmentation.scale, augmentation.ratio, augmentation.flip)
    return draw_colours(crop, generator, augmentation)


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
    """The central square as it is."""
    return View(centre_crop(height, width))


def apply_view(frames: np.ndarray, view: View, size: int) -> Tensor:
    """Show uint8 frames [F, H, W, 3] as the view says: uint8 [F, 3, size, size]."""
    if view.degrees:
        frames = _turned(torch.from_numpy(frames).permute(0, 3, 1, 2), view).permute(0, 2, 3, 1).contiguous().numpy()
    return _recoloured(apply_crop(frames, view.crop, size), view)


def apply_views(video: Tensor, views: Tensor, size: int) -> Tensor:
    """Show a padded batch uint8 [B, F, 3, H, W] as its views say, [B, 12] or for each frame [B, F, 12]:
    uint8 [B, F, 3, size, size], on its device.

    Crop, resize and flip are two products of matrices for the whole batch, with the weights of the antialiased bicubic
    filter. As on the CPU the frames are rounded to uint8 between the two: overshoots are cut off there.
    """
    if views.ndim == 3:
        return apply_views(video.flatten(0, 1)[:, None], views.flatten(0, 1), size).reshape(
            *video.shape[:3], size, size
        )
    known = [View.from_tensor(numbers) for numbers in views]
    if any(view.degrees for view, _, _ in known):
        video = video.clone()
        for frames, (view, height, width) in zip(video, known, strict=True):
            if view.degrees:
                frames[..., :height, :width] = _turned(frames[..., :height, :width], view)
    crops = [view.crop for view, _, _ in known]
    rows = _filter([c.top for c in crops], [c.height for c in crops], video.shape[-2], size)  # [B, S, H]
    columns = _filter([c.left for c in crops], [c.width for c in crops], video.shape[-1], size)  # [B, S, W]
    mirrored = torch.tensor([c.flip for c in crops])
    columns[mirrored] = columns[mirrored].flip(1)
    rows, columns = (weights.to(video.device)[:, None, None] for weights in (rows, columns))
    shown = _rounded(_rounded(video.float() @ columns.mT, torch.float32).mT @ rows.mT, torch.uint8).mT.contiguous()
    for frames, (view, _, _) in zip(shown, known, strict=True):
        frames.copy_(_recoloured(frames, view))
    return shown


def padded(videos: Sequence[Tensor], allocate: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Join videos uint8 [R, F, 3, h, w] into one [B, F, 3, H, W], black to the right of and below the smaller ones.

    In memory, which `allocate` gives, the channels lie last, as they come from decoders and from resizing: turning them
    would cost a tenth of what decoding a pair of JPEGs does.
    """
    height, width = (max(video.shape[side] for video in videos) for side in (-2, -1))
    B, F = sum(len(video) for video in videos), videos[0].shape[1]
    joined = allocate((B, F, height, width, 3)).permute(0, 1, 4, 2, 3)
    begin = 0
    for video in videos:
        place = joined[begin : begin + len(video)]
        if video.shape[-2:] != place.shape[-2:]:
            place.zero_()
        place[..., : video.shape[-2], : video.shape[-1]] = video
        begin += len(video)
    return joined


def _turned(images: Tensor, view: View) -> Tensor:
    return F.rotate(images, view.degrees, interpolation=InterpolationMode.BILINEAR)


def _recoloured(images: Tensor, view: View) -> Tensor:
    if view.brightness != 1:
        images = F.adjust_brightness(images, view.brightness)
    if view.contrast != 1:
        images = F.adjust_contrast(images, view.contrast)
    if view.saturation != 1:
        images = F.adjust_saturation(images, view.saturation)
    return F.adjust_hue(images, view.hue) if view.hue else images


def _rounded(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return pixels.round_().clamp_(0, 255).to(dtype)


def _filter(begin: Sequence[int], lengths: Sequence[int], side: int, size: int) -> Tensor:
    """Weights float32 [B, size, side] that scale the pixels begin … begin + length - 1 of a row of `side` to `size`.

    Keys' cubic with a = -1/2, stretched where it shrinks, as in Pillow and in torch's antialiased resize.
    """
    length = torch.tensor(lengths, dtype=torch.float64)[:, None, None]
    scale = length / size
    centre = (torch.arange(size)[:, None] + 0.5) * scale  # [B, size, 1], within the crop
    pixel = torch.arange(side) - torch.tensor(begin)[:, None, None] + 0.5  # [B, 1, side]
    x = ((pixel - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * ((pixel > 0) & (pixel < length))
    return (weights / weights.sum(-1, keepdim=True)).float()
