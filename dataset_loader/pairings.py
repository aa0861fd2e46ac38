"""Which two pictures make a pair: of two frames or of one, cut alike or each on its own.

A `Pairing` is looked up by name in `PAIRINGS`; a `Mix` draws one of several for each sample, by their shares. Crops are
drawn in pixels of the frame, and travel with the batch as `box`, so the true correspondence of a pair is known.

Legend: B samples in a batch, F frames of a sample (the past, then its futures), H W pixels of a frame.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from common.errors import InputError
from dataset_loader.transforms import Augmentation, Crop, draw_crop

TRIES = 20  # of placing a jittered crop within the frame, before it is moved inside
WINDOW = (0.4375, 0.75)  # side of a shifted window as a share of the frame's shorter side
SHIFT = 3 / 8  # the largest shift, as a share of the window's side
LOCAL = (0.3, 0.8)  # area of a local crop as a share of the global one
JITTERED = (0.3, 0.8)  # area of the past's crop where the futures' are jittered: room to move
JITTER = 0.25  # the largest shift of a jittered crop, as a share of the past's sides
ZOOM = (0.7, 1.4)  # sides of a jittered crop relative to the past's

DrawCrops = Callable[[int, int, int, np.random.Generator, Augmentation, int], list[Crop]]


@dataclass(frozen=True)
class Pairing:
    """draw: (H, W, F, generator, augmentation, grid) → F crops, mirrored alike; grid: patches along a side.

    one_frame: past and futures are the same frame, so single pictures can serve.
    """

    draw: DrawCrops
    one_frame: bool = False


@dataclass(frozen=True)
class Mix:
    """Pairings and their shares, which sum to 1."""

    pairings: tuple[Pairing, ...]
    shares: tuple[float, ...] = (1.0,)

    def pick(self, generator: np.random.Generator, still: bool = False) -> Pairing:
        """Draw one; of a single picture (`still`) one of those that need no second frame. One alone costs no draw.

        Raises InputError if a still has none.
        """
        chosen = [(p, share) for p, share in zip(self.pairings, self.shares, strict=True) if p.one_frame or not still]
        if not chosen:
            raise InputError("has only one frame; a pair needs two, unless its pairing is crops or shifted")
        if len(chosen) == 1:
            return chosen[0][0]
        ends = np.cumsum([share for _, share in chosen])
        return chosen[int(np.searchsorted(ends, generator.random() * ends[-1], side="right"))][0]


def parse_pairing(text: str) -> Mix:
    """A pairing by name, or `mixed:NAME=SHARE,…`; the shares are scaled to sum to 1. An InputError lists the names."""
    kind, _, listed = text.partition(":")
    if kind != "mixed":
        return Mix((_named(text),))
    names, shares = [], []
    for part in listed.split(","):
        name, _, share = part.partition("=")
        try:
            shares.append(float(share or 1))
        except ValueError:
            shares.append(math.nan)
        names.append(name.strip())
        if not 0 < shares[-1] < math.inf:
            raise InputError(f"pairing {text!r}: the share of {name!r} is {share!r}; expected a number above 0")
    if len(set(names)) < len(names):
        raise InputError(f"pairing {text!r} names a pairing twice")
    return Mix(tuple(_named(name) for name in names), tuple(share / sum(shares) for share in shares))


def boxes(crops: list[Crop]) -> torch.Tensor:
    """int64 [F, 5] for a batch: top, left, height, width in pixels of the frame, and 1 where it is mirrored."""
    return torch.tensor([[c.top, c.left, c.height, c.width, c.flip] for c in crops], dtype=torch.int64)


def _same(height: int, width: int, frames: int, generator: np.random.Generator, a: Augmentation, _: int) -> list[Crop]:
    """One crop for all frames: SiamMAE's."""
    return [draw_crop(height, width, generator, a.scale, a.ratio, a.flip)] * frames


def _local(height: int, width: int, frames: int, generator: np.random.Generator, a: Augmentation, _: int) -> list[Crop]:
    """The past global, each future inside it (CropMAE, Eymaël et al. 2024, §3)."""
    past = draw_crop(height, width, generator, a.scale, a.ratio, a.flip)
    return [past, *(_inside(past, generator, a) for _ in range(frames - 1))]


def _global(
    height: int, width: int, frames: int, generator: np.random.Generator, a: Augmentation, _: int
) -> list[Crop]:
    """The reverse: the past a part of what all futures show."""
    future = draw_crop(height, width, generator, a.scale, a.ratio, a.flip)
    return [_inside(future, generator, a), *[future] * (frames - 1)]


def _shifted(
    height: int,
    width: int,
    frames: int,
    generator: np.random.Generator,
    a: Augmentation,
    grid: int,
    *,
    whole: bool = False,
) -> list[Crop]:
    """Square windows of one size, each future moved freely, or (`whole`) by whole patches, as far as the frame goes."""
    short = min(height, width)
    patches = [max(1, round(share * short / grid)) for share in WINDOW]
    side = min(short, grid * int(generator.integers(patches[0], patches[1] + 1)))
    flip = bool(generator.random() < a.flip)
    top, left = int(generator.integers(height - side + 1)), int(generator.integers(width - side + 1))
    unit = side / grid if whole else 1.0

    def moved(start: int, end: int) -> int:
        low, high = -min(SHIFT * side, start), min(SHIFT * side, end - side - start)
        return start + round(unit * int(generator.integers(math.ceil(low / unit), math.floor(high / unit) + 1)))

    past = Crop(top, left, side, side, flip)
    return [past, *(replace(past, top=moved(top, height), left=moved(left, width)) for _ in range(frames - 1))]


def _jittered(
    height: int, width: int, frames: int, generator: np.random.Generator, a: Augmentation, _: int
) -> list[Crop]:
    """Each future's crop is the past's, moved and zoomed: at least 0.46 of its area lies in the past's, but for
    rounding (0.68 of a side at the largest zoom and shift)."""
    past = draw_crop(height, width, generator, JITTERED, a.ratio, a.flip)
    return [past, *(_near(past, height, width, generator) for _ in range(frames - 1))]


def _near(past: Crop, height: int, width: int, generator: np.random.Generator) -> Crop:
    for _ in range(TRIES):
        zoom = math.exp(generator.uniform(math.log(ZOOM[0]), math.log(ZOOM[1])))
        down, right = generator.uniform(-JITTER, JITTER, size=2)
        h, w = round(past.height * zoom), round(past.width * zoom)
        top = round(past.top + past.height * (0.5 + down) - h / 2)
        left = round(past.left + past.width * (0.5 + right) - w / 2)
        if h and w and 0 <= top <= height - h and 0 <= left <= width - w:
            break
    else:
        h, w = min(max(h, 1), height), min(max(w, 1), width)
        top, left = min(max(top, 0), height - h), min(max(left, 0), width - w)
    return Crop(top, left, h, w, past.flip)


def _inside(outer: Crop, generator: np.random.Generator, a: Augmentation) -> Crop:
    inner = draw_crop(outer.height, outer.width, generator, LOCAL, a.ratio, 0.0)
    return replace(inner, top=outer.top + inner.top, left=outer.left + inner.left, flip=outer.flip)


PAIRINGS: dict[str, Pairing] = {
    "video": Pairing(_same),
    "crops": Pairing(_local, one_frame=True),
    "crops_reversed": Pairing(_global, one_frame=True),
    "shifted": Pairing(_shifted, one_frame=True),
    "shifted_patches": Pairing(partial(_shifted, whole=True), one_frame=True),
    "video_shifted": Pairing(_shifted),
    "jittered": Pairing(_jittered),
}


def _named(name: str) -> Pairing:
    if name not in PAIRINGS:
        raise InputError(
            f"pairing {name!r} is unknown; there are {', '.join(PAIRINGS)} and mixed:NAME=SHARE,NAME=SHARE"
        )
    return PAIRINGS[name]
