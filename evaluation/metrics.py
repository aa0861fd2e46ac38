"""What a result is worth: J and F of objects, mean IoU of classes, PCK of keypoints, as the public scripts count them.

Legend: T frames, M objects, J joints, C classes, H W pixels. Everything is numpy on the CPU and exact: the same counts
of pixels, divided in the same order, as in the official DAVIS 2017 tool give the same last bit.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mae.files import InputError

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]


class Statistics(NamedTuple):
    """A measure over the frames of one object: mean, share of frames above 0.5, and first minus last quarter."""

    mean: float
    recall: float
    decay: float


# ------------------------------------------------------------------------------------------------ objects: J and F


def region_and_contour(truth: Labels, result: Labels, objects: int) -> tuple[Floats, Floats]:
    """Label maps [H, W] of one frame → J [M] and F [M] of the objects 1 … M (Perazzi et al. 2016, §5; DAVIS 2017 tool).

    J is intersection over union. F is the harmonic mean of precision and recall of boundary pixels, where a pixel
    matches if the other boundary passes within ⌈0.008 · diagonal⌉ pixels. Each is 1 where both masks (for F: both
    boundaries) are empty. An object that the result lacks is scored against an empty mask.
    """
    if truth.shape != result.shape or truth.ndim != 2:
        raise InputError(f"a result of {_size(result)} cannot be scored against a truth of {_size(truth)}")
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    j, f = np.ones(objects), np.ones(objects)
    for index in range(objects):
        true, found = truth == index + 1, result == index + 1
        box = _box(true | found, margin=1)
        if box is None:
            continue
        last = (box[0].stop == truth.shape[0], box[1].stop == truth.shape[1])
        true, found = true[box], found[box]
        j[index] = np.count_nonzero(true & found) / np.count_nonzero(true | found)
        f[index] = _contour(_boundary(true, *last), _boundary(found, *last), radius)
    return j, f


def statistics(values: Sequence[float] | Floats) -> Statistics:
    """Mean, recall and decay of a measure over an object's scored frames [T]; NaN each where there are none.

    The official tool holds the quarters' borders as 8-bit integers and so is only defined up to 256 frames; beyond,
    the same borders are meant here.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return Statistics(np.nan, np.nan, np.nan)
    ids = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[ids[0] : ids[1] + 1], values[ids[3] : ids[4] + 1]
    return Statistics(float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean()))


def _contour(true: NDArray[np.uint8], found: NDArray[np.uint8], radius: int) -> float:
    """F of two boundary maps, 0 or 1, cropped alike: all that can match lies in both, so the crop loses nothing."""
    n_true, n_found = np.count_nonzero(true), np.count_nonzero(found)
    if n_true == 0 or n_found == 0:
        return float(n_true == n_found)
    rows, gap = len(true), np.zeros((radius, true.shape[1]), dtype=np.uint8)
    near = _dilate(np.concatenate([true, gap, found]), radius)  # both at once; the gap keeps them apart
    precision = np.count_nonzero(found & near[:rows]) / n_found
    recall = np.count_nonzero(true & near[-rows:]) / n_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilate(boundary: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """1 where a boundary pixel lies within the disk x² + y² ≤ r²: the disk row by row, rows of one width only once."""
    widened: dict[int, Any] = {}
    near = np.zeros_like(boundary)
    for down in range(-radius, radius + 1):
        width = isqrt(radius * radius - down * down)
        if width not in widened:
            widened[width] = cv2.dilate(boundary, np.ones((1, 2 * width + 1), dtype=np.uint8))
        source, target = slice(max(down, 0), len(near) + min(down, 0)), slice(max(-down, 0), len(near) - max(down, 0))
        near[target] |= widened[width][source]
    return near


def _boundary(mask: NDArray[np.bool_], at_bottom: bool, at_right: bool) -> NDArray[np.uint8]:
    """1 where a pixel differs from its right, lower or lower-right neighbour.

    In the image's last row only the right one counts, in its last column only the lower one; a crop that ends before
    has a margin there, in which nothing differs.
    """
    boundary = np.zeros(mask.shape, dtype=bool)
    here = mask[:-1, :-1]
    boundary[:-1, :-1] = (here != mask[:-1, 1:]) | (here != mask[1:, :-1]) | (here != mask[1:, 1:])
    if at_bottom:
        boundary[-1, :-1] = mask[-1, :-1] != mask[-1, 1:]
    if at_right:
        boundary[:-1, -1] = mask[:-1, -1] != mask[1:, -1]
    return boundary.view(np.uint8)


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice] | None:
    """The rows and columns of a mask's bounding box with a margin, within the image; None for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    if width == 0:
        return None
    rows = slice(max(y - margin, 0), min(y + height + margin, mask.shape[0]))
    return rows, slice(max(x - margin, 0), min(x + width + margin, mask.shape[1]))


# ------------------------------------------------------------------------------------------------ parts: mean IoU


def confusion(truth: Labels, result: Labels, classes: int) -> NDArray[np.int64]:
    """Label maps [H, W] → counts [C, C + 1], truth by result; the last column holds results that are none of the C.

    Pixels whose truth is none of the C classes (void) are left out. Counts of frames and videos add up.
    """
    if truth.shape != result.shape:
        raise InputError(f"a result of {_size(result)} cannot be scored against a truth of {_size(truth)}")
    kept = truth < classes
    cells = truth[kept].astype(np.intp) * (classes + 1) + np.minimum(result[kept], classes)
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_iou(counts: NDArray[np.int64]) -> Floats:
    """Counts [C, C + 1] → IoU of each class [C]; NaN for a class that neither truth nor result holds."""
    right = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=1) + counts[:, :-1].sum(axis=0) - right
    return np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean IoU over the classes that occur (VIP's public script: one matrix over all frames, the first included)."""
    iou = class_iou(counts)
    return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")


# ------------------------------------------------------------------------------------------------ joints: PCK


def joint_errors(truth: Floats, result: Floats, *, strict: bool = False) -> Floats:
    """Joints [T, J, 2] in pixels of one video → distances [T, J] in units of the person's size, to be pooled by `pck`.

    The size is 0.6 · the diagonal of the box around the frame's true joints (JHMDB's public script). NaN, for not
    counted: the first frame, which was given; joints without truth (NaN); and joints that the result lost (−1), which
    then do not widen the box either. With `strict` lost joints widen the box and are misses (∞).
    """
    if truth.shape != result.shape:
        raise InputError(f"joints of shape {result.shape} cannot be scored against true ones of shape {truth.shape}")
    known: Any = np.isfinite(truth).all(axis=2)  # [T, J]
    lost = known & ~(result[..., 0] >= 0)
    visible = known if strict else known & ~lost
    corners = np.where(visible[..., None], truth, np.nan)
    errors = np.full(known.shape, np.nan)
    for t in range(1, len(truth)):
        if visible[t].any():
            size = 0.6 * np.linalg.norm(np.nanmax(corners[t], axis=0) - np.nanmin(corners[t], axis=0))
            distance = np.linalg.norm(result[t] - truth[t], axis=1)
            errors[t] = distance / size if size > 0 else np.inf  # a box without extent has no measure: missed
    errors[~visible] = np.nan
    errors[1:][(lost & visible)[1:]] = np.inf
    return errors


def pck(errors: Sequence[Floats], alpha: float) -> float:
    """Errors [T, J] of all videos → share of joints with an error ≤ α: per joint over all videos, then their mean."""
    pooled = np.concatenate(list(errors))
    counted = ~np.isnan(pooled)
    right, total = (pooled <= alpha).sum(axis=0), counted.sum(axis=0)
    return float((right[total > 0] / total[total > 0]).mean()) if total.any() else float("nan")


def _size(labels: NDArray) -> str:
    return "×".join(map(str, labels.shape))
