"""What a result is worth: J and F of objects, mean IoU of classes, PCK of keypoints, as the public scripts count them.

Legend: T frames, M objects, J joints, C classes, H W pixels. Everything is numpy on the CPU and exact: the same counts
of pixels, divided in the same order, as in the official DAVIS 2017 tool give the same last bit.
"""

import math
from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]

STATISTICS = ("Mean", "Recall", "Decay")
TRUE, FOUND = np.uint8(1), np.uint8(2)  # the bits of the truth and of the result where both lie in one map


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
        at_bottom, at_right = box[0].stop == truth.shape[0], box[1].stop == truth.shape[1]
        pair = true[box] * TRUE | found[box] * FOUND
        j[index] = np.count_nonzero(pair == TRUE | FOUND) / np.count_nonzero(pair)
        f[index] = _contour(_boundary(pair, at_bottom, at_right), radius)
    return j, f


def statistics(measure: str, values: Sequence[float] | Floats) -> dict[str, float]:
    """Of a measure ("J" or "F") over an object's scored frames [T]: mean, recall (the share above 0.5) and decay (first
    minus last quarter) as "J-Mean" and so on; NaN each where there is no frame.

    The official tool holds the quarters' borders as 8-bit integers and so is only defined up to 256 frames; beyond,
    the same borders are meant here.
    """
    values = np.asarray(values, dtype=np.float64)
    found = [math.nan] * 3
    if values.size:
        ids = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
        first, last = values[ids[0] : ids[1] + 1], values[ids[3] : ids[4] + 1]
        found = [float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())]
    return {f"{measure}-{name}": value for name, value in zip(STATISTICS, found, strict=True)}


def _contour(boundary: NDArray[np.uint8], radius: int) -> float:
    """F of a pair's two boundaries, cropped alike: all that can match lies in both, so the crop loses nothing."""
    here = np.flatnonzero(boundary != 0)  # of booleans: ten times faster
    edges, near = boundary.ravel()[here], _dilate(boundary, radius).ravel()[here]
    n_true, n_found = np.count_nonzero(edges & TRUE), np.count_nonzero(edges & FOUND)
    if n_true == 0 or n_found == 0:
        return float(n_true == n_found)
    precision = np.count_nonzero((edges & FOUND) * (near & TRUE)) / n_found
    recall = np.count_nonzero((edges & TRUE) * (near & FOUND)) / n_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilate(pair: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """OR of a map [H, W] over the disk x² + y² ≤ r².

    The map's rows lie one after the other with `radius` zeros between them: a shift by (y, x) of the disk is a shift
    of the whole, in which nothing wraps round, and an OR of two long rows of bytes is the fastest thing that there is.
    """
    height, width = pair.shape
    stride = width + radius
    padded = np.zeros((height, stride), dtype=np.uint8)
    padded[:, :width] = pair
    flat = padded.ravel()
    widened, near = flat.copy(), np.zeros_like(flat)  # widened: over −x … x of each row
    rows = {y: isqrt(radius * radius - y * y) for y in range(radius + 1)}  # the disk's row ±y covers −x … x
    for x in range(radius + 1):
        if x:
            _or_shifted(widened, flat, x)
        for y in (y for y in rows if rows[y] == x and y < height):
            _or_shifted(near, widened, y * stride)
    return near.reshape(height, stride)[:, :width]


def _or_shifted(target: NDArray[np.uint8], source: NDArray[np.uint8], shift: int) -> None:
    """OR a row of bytes into another one, shifted to the right and to the left."""
    stop = len(source) - shift
    target[shift:] |= source[:stop]
    target[:stop] |= source[shift:]


def _boundary(pair: NDArray[np.uint8], at_bottom: bool, at_right: bool) -> NDArray[np.uint8]:
    """The bits in which a pixel differs from its right, lower or lower-right neighbour.

    In the image's last row only the right one counts, in its last column only the lower one; a crop that ends before
    has a margin there, in which nothing differs.
    """
    boundary = np.zeros_like(pair)
    here = pair[:-1, :-1]
    boundary[:-1, :-1] = (here ^ pair[:-1, 1:]) | (here ^ pair[1:, :-1]) | (here ^ pair[1:, 1:])
    if at_bottom:
        boundary[-1, :-1] = pair[-1, :-1] ^ pair[-1, 1:]
    if at_right:
        boundary[:-1, -1] = pair[:-1, -1] ^ pair[1:, -1]
    return boundary


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice] | None:
    """The rows and columns of a mask's bounding box with a margin, within the image; None for an empty mask."""
    import cv2  # here: the command that prints its help needs none

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
    return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else math.nan


# ------------------------------------------------------------------------------------------------ joints: PCK


def joint_errors(truth: Floats, result: Floats) -> Floats:
    """Joints [T, J, 2] in pixels of one video → distances [T, J] in units of the person's size.

    The size is 0.6 · the diagonal of the box around the frame's true joints (JHMDB's public script). NaN, for not
    counted: the first frame, which was given, and joints without truth (NaN). Joints that the result lost (−1) are ∞
    and do not widen the box; the public script leaves them out.
    """
    if truth.shape != result.shape:
        raise InputError(f"joints of shape {result.shape} cannot be scored against true ones of shape {truth.shape}")
    known = np.isfinite(truth).all(axis=2)  # [T, J]
    found = known & (result[..., 0] >= 0)
    errors = np.where(known, np.inf, np.nan)
    for t in range(len(truth)):
        if found[t].any():
            size = 0.6 * np.linalg.norm(np.ptp(truth[t][found[t]], axis=0))
            if size > 0:  # a box without extent has no measure: missed
                errors[t, found[t]] = (np.linalg.norm(result[t] - truth[t], axis=1) / size)[found[t]]
    errors[0] = np.nan
    return errors


def pck(right: NDArray[np.integer], counted: NDArray[np.integer]) -> float:
    """How often each joint was right, and counted [J] → the mean of the joints' shares; NaN if none was counted."""
    some = counted > 0
    return float((right[some] / counted[some]).mean()) if some.any() else math.nan


def _size(labels: NDArray) -> str:
    return "×".join(map(str, labels.shape))
