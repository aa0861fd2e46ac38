"""What a SiamMAE predicts of pairs of a video's frames, for many sets of visible patches: pictures for a page."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.masking import mask_noise, visible_count
from ml.reconstruction import Reconstruction, reconstruct
from ml.report_pictures import jpeg
from ml.SiamMAE import Model

RATIOS = (0.5, 0.75, 0.9, 0.95, 0.98)
DRAWS = 3
SINGLES = 36  # patches that may be the only visible one, on an even lattice

Frame = NDArray[np.uint8]


def predict_pairs(
    model: Model,
    frames: Sequence[Frame],
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    *,
    ratios: Sequence[float] = RATIOS,
    draws: int = DRAWS,
    singles: int = SINGLES,
) -> dict[str, Any]:
    """RGB frames [H, W, 3], their names, and pairs of their numbers (past, future) → plain values for the page.

    Of each pair: `draws` predictions at each ratio, in which a larger ratio hides the same patches and more, and one
    with each of `singles` patches as the only one visible. `spread`: per patch the standard deviation of the predicted
    brightness (0 … 1) over the predictions with as many visible patches, itself not among them; a mean over its pixels.
    """
    h, w = model.grid
    size, N = model.patch_size, h * w
    told = []
    for past, future in pairs:
        video = torch.from_numpy(np.stack([_square(frames[k], (h * size, w * size)) for k in (past, future)]))
        video = video.permute(0, 3, 1, 2).contiguous()
        noises = [mask_noise(torch.tensor([k]), N)[0].argsort().argsort().float() for k in range(draws)]
        drawn = [[_predict(model, video, noise, visible_count(N, ratio)) for ratio in ratios] for noise in noises]
        alone = []
        for patch in _lattice(h, w, singles):
            noise = torch.ones(N)
            noise[patch] = 0
            alone.append(_predict(model, video, noise, 1))
        first = drawn[0][0][0]
        assert first.past is not None
        told.append(
            dict(
                name=f"{names[past]} → {names[future]}", past_name=names[past], future_name=names[future], grid=[h, w],
                past=jpeg(first.past), future=jpeg(first.frames[0]),
                draws=[[_entry(*each) for each in row] for row in drawn], single=[_entry(*each) for each in alone],
                spread=[_spread([row[k] for row in drawn], size) for k in range(len(ratios))],
                single_spread=_spread(alone, size),
            )
        )  # fmt: skip
    caption = f"{first.caption[0].upper()}{first.caption[1:]}. The page holds these predictions; it runs no model."
    own = min(range(len(ratios)), key=lambda k: abs(ratios[k] - model.mask_ratio))
    return dict(
        pairs=told, ratios=list(ratios), ratio=own, draws=[f"random {k + 1}" for k in range(draws)], caption=caption
    )


def _predict(model: Model, video: Tensor, noise: Tensor, visible: int) -> tuple[Reconstruction, list[int]]:
    N = len(noise)
    ratio = 1 - (visible + 0.5) / N  # half a patch more, so that no rounding makes it one less
    result = reconstruct({"video": video, "noise": noise}, model, mask_ratio=ratio)
    return result, noise.argsort(stable=True)[:visible].tolist()


def _entry(result: Reconstruction, visible: list[int]) -> dict[str, Any]:
    return dict(visible=visible, picture=jpeg(result.pasted[0]), loss=result.loss)


def _spread(results: list[tuple[Reconstruction, list[int]]], size: int) -> list[float]:
    """Per patch, row by row: how much the raw predictions differ of those in which it was hidden; 0 of fewer than 2."""
    raw = torch.stack([result.raw[0] for result, _ in results])  # [R, 3, H, W]
    patches = raw.unflatten(2, (-1, size)).unflatten(4, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    spread = []
    for k, values in enumerate(patches.unbind(1)):  # [R, P]
        asked = [r for r, (_, visible) in enumerate(results) if k not in visible]
        spread.append(round(values[asked].std(0, correction=0).mean().item(), 4) if len(asked) > 1 else 0.0)
    return spread


def _lattice(h: int, w: int, count: int) -> list[int]:
    """At most so many patches of a grid, in even rows and columns."""
    step = max(1, math.ceil(math.sqrt(h * w / count)))
    return [y * w + x for y in range(step // 2, h, step) for x in range(step // 2, w, step)]


def _square(frame: Frame, size: tuple[int, int]) -> Frame:
    """The largest part of a frame's centre with the shape of a size (height, width), at that size."""
    factor = max(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (max(side, round(length * factor)) for side, length in zip(size, frame.shape, strict=False))
    smaller = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(frame, (width, height), interpolation=smaller)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.asarray(scaled[top : top + size[0], left : left + size[1]], dtype=np.uint8)
