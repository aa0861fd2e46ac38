"""From results to the numbers of the papers' tables: opens a video's truth once its result is complete.

Legend: T frames, M objects, J joints, C classes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from evaluation.datasets import Joints, Mask, Video
from evaluation.metrics import Statistics, confusion, joint_errors, region_and_contour, statistics


class ObjectScore(NamedTuple):
    """J and F of one object of one video over its scored frames."""

    video: str
    object: int
    J: Statistics
    F: Statistics


def score_objects(video: Video[Mask], results: Sequence[Mask]) -> list[ObjectScore]:
    """Masks of all frames → J and F of each object, the first and the last frame left out (DAVIS, semi-supervised).

    The objects are 1 … the largest label of the first mask. A result with a larger one is refused, as officially.
    """
    objects = int(video.first.max())
    if len(video) < 3:
        raise InputError(f"{video.name} has {len(video)} frames; J and F leave out the first and the last, and need 3")
    values: list[NDArray[np.float64]] = []  # [2, M] of each frame
    for index, truth, result in video.truth(results):
        if result.max(initial=0) > objects:
            raise InputError(f"{video.name}, frame {index}: label {result.max()} in the result, of {objects} objects")
        if 0 < index < len(video) - 1:
            values.append(np.stack(region_and_contour(truth, result, objects)))
    if not values:
        raise InputError(f"{video.name}: no frame between the first and the last has a mask to score against")
    j, f = np.stack(values, axis=2)  # [M, T] each
    return [ObjectScore(video.name, index + 1, statistics(j[index]), statistics(f[index])) for index in range(objects)]


def davis_table(scores: Iterable[ObjectScore]) -> dict[str, float]:
    """The official final row: the mean of each statistic over all objects of all videos; J&F is that of two means."""
    scores = list(scores)
    row: dict[str, float] = {}
    for measure in ("J", "F"):
        columns = np.array([getattr(score, measure) for score in scores], dtype=np.float64)  # [objects, 3]
        for name, column in zip(("Mean", "Recall", "Decay"), columns.T, strict=True):
            row[f"{measure}-{name}"] = float(np.mean(column))
    return {"J&F-Mean": (row["J-Mean"] + row["F-Mean"]) / 2, **row}


def count_classes(video: Video[Mask], results: Sequence[Mask], classes: int) -> NDArray[np.int64]:
    """Masks of all frames → counts [C, C + 1] for `mean_iou`, the first frame included (VIP's public script)."""
    counts = np.zeros((classes, classes + 1), dtype=np.int64)
    for _, truth, result in video.truth(results):
        counts += confusion(truth, result, classes)
    return counts


def score_joints(video: Video[Joints], results: Sequence[Joints], *, strict: bool = False) -> NDArray[np.float64]:
    """Joints of all frames → errors [T, J] for `pck`, of the frames that have a truth."""
    rows = [(truth, result) for _, truth, result in video.truth(results)]
    truths, found = (np.stack(column) for column in zip(*rows, strict=True))
    return joint_errors(truths, found, strict=strict)
