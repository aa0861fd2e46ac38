"""VSPW: every pixel's class, and whether predictions stay the same where the truth does (Miao et al. 2021).

Legend: T frames, H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.benchmark import Classes, Scores, percent
from evaluation.metrics import class_iou, confusion
from evaluation.protocols import Protocol
from evaluation.videos import Label, Mask, Video, mask_video, read_list, select

VOID = 255
WINDOWS = (8, 16)


@dataclass(frozen=True)
class VSPW(Classes):
    """VSPW, mean IoU of 124 classes and their consistency VC8, VC16: data/<video>/{origin,mask}/, <split>.txt.

    mIoU is of one confusion matrix over all videos, video mIoU the mean of each video's own.
    VC as the official code has it: of the pixels whose truth stays the same for n frames, the share in which the
    prediction stays the same, right or wrong, void included, without the last window. VC strict: and is right.
    """

    split: str = "val"
    """which list of videos"""

    classes = 124
    void = classes
    columns = ("classes", "mIoU", "VC8", "VC16")

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        listed = [name for name in read_list(self.data / f"{self.split}.txt") if not name.startswith(".")]
        for name in select(listed, names):
            folder = self.data / "data" / name
            yield mask_video(name, folder / "origin", folder / "mask", to_classes, roots=(self.data,))

    def follow(self, video: Video, by: Any, protocol: Protocol, *, batch: int = 1) -> Iterator[Label]:
        from evaluation.controls import follow

        return follow(video, by, protocol, batch=batch, void=VOID)

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        pairs = [(truth, result) for _, truth, result in video.truth(results)]
        counts = sum(
            (confusion(truth, result, self.classes) for truth, result in pairs), np.zeros((124, 125), np.int64)
        )
        truths, found = ([pair[k] for pair in pairs] for k in range(2))
        windows = {str(n): consistency(truths, found, n) for n in WINDOWS}
        return {"counts": counts.tolist(), "windows": windows}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        counts = np.array([each["counts"] for each in scores.values()], dtype=np.int64).sum(axis=0)
        row = mean_accuracies(counts)
        row["video mIoU"] = float(
            np.mean([mean_accuracies(np.array(each["counts"]))["mIoU"] for each in scores.values()])
        )
        for n in map(str, WINDOWS):
            values = [window for each in scores.values() for window in each["windows"][n]]
            for index, name in enumerate((f"VC{n}", f"VC{n} strict")):
                row[name] = float(np.mean([value[index] for value in values])) if values else float("nan")
        return row

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return *super().cells(scores), percent(row["VC8"]), percent(row["VC16"])


def to_classes(stored: Mask) -> Mask:
    """Stored labels (0 void, 1 … 124, 255 void) → classes 0 … 123, and 255 for void."""
    return np.where((stored == 0) | (stored == VOID), VOID, stored - 1).astype(np.uint8)


def mean_accuracies(counts: Any) -> dict[str, float]:
    """Counts [C, C + 1] → mIoU over the classes with a true pixel, pixel accuracy, mean class accuracy."""
    right, true = np.diagonal(counts).astype(np.float64), counts.sum(axis=1)
    there = true > 0
    if not there.any():
        return {"mIoU": float("nan"), "pixels": float("nan"), "class accuracy": float("nan")}
    return {
        "mIoU": float(class_iou(counts)[there].mean()),
        "pixels": float(right.sum() / true.sum()),
        "class accuracy": float((right[there] / true[there]).mean()),
    }


def consistency(truths: Sequence[Label], results: Sequence[Label], n: int) -> list[list[float]]:
    """Label maps [H, W] of T frames → for each of T − n windows of n frames, VC as coded and strict.

    Windows in which no pixel's truth stays the same are left out.
    """
    same = [
        (truths[t] == truths[t + 1], results[t] == results[t + 1]) for t in range(len(truths) - 1)
    ]  # of neighbouring frames
    values = []
    for start in range(len(truths) - n):
        still, steady = (np.logical_and.reduce([pair[k] for pair in same[start : start + n - 1]]) for k in range(2))
        total = np.count_nonzero(still)
        if total:
            both = still & steady
            right = np.count_nonzero(both & (truths[start] == results[start]))
            values.append([float(np.count_nonzero(both) / total), float(right / total)])
    return values
