"""What is counted on a benchmark: scores of each video as plain values, and the row of the papers' tables from them.

The scores of a video are what JSON can hold, and the row is computed from the scores of all videos alone: it is the
same to the last bit whether the videos were followed in one go, after an interruption, or by several processes.

Legend: C classes, T frames, J joints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from evaluation.datasets import CAMVID_CLASSES, VIP_CLASSES, Video
from evaluation.metrics import Statistics, mean_iou, pck
from evaluation.scoring import ObjectScore, count_classes, davis_table, score_joints, score_objects

Scores = dict[str, Any]
STATISTICS = ("Mean", "Recall", "Decay")
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Objects:
    """J and F of each object (DAVIS)."""

    kind: ClassVar[str] = "objects"
    columns: ClassVar[tuple[str, ...]] = ("objects", "J", "F")
    worst_first: ClassVar[str] = "J&F"

    def score(self, video: Video[Any], results: Sequence[Any]) -> Scores:
        return {
            "objects": [
                {"object": score.object}
                | {f"J-{name}": value for name, value in zip(STATISTICS, score.J, strict=True)}
                | {f"F-{name}": value for name, value in zip(STATISTICS, score.F, strict=True)}
                for score in score_objects(video, results)
            ]
        }

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return davis_table(
            ObjectScore(
                video,
                entry["object"],
                Statistics(*(entry[f"J-{name}"] for name in STATISTICS)),
                Statistics(*(entry[f"F-{name}"] for name in STATISTICS)),
            )
            for video, each in scores.items()
            for entry in each["objects"]
        )

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["objects"])), *(_percent(row[f"{measure}-Mean"]) for measure in "JF")

    def value(self, scores: Scores) -> float:
        return self.row({"": scores})["J&F-Mean"]


@dataclass(frozen=True)
class Classes:
    """Mean IoU of classes, over all frames with a label, the first included (VIP; CamVid's kind)."""

    classes: int

    kind: ClassVar[str] = "classes"
    columns: ClassVar[tuple[str, ...]] = ("classes", "mIoU")
    worst_first: ClassVar[str] = "mIoU"

    def score(self, video: Video[Any], results: Sequence[Any]) -> Scores:
        return {"counts": count_classes(video, results, self.classes).tolist()}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return {"mIoU": mean_iou(np.sum([each["counts"] for each in scores.values()], axis=0, dtype=np.int64))}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        occurring = int((np.array(scores["counts"]).sum(axis=1) > 0).sum())
        return str(occurring), _percent(self.value(scores))

    def value(self, scores: Scores) -> float:
        return self.row({"": scores})["mIoU"]


@dataclass(frozen=True)
class Keypoints:
    """PCK of joints (JHMDB). `strict` counts joints without any heat as misses; the public script leaves them out."""

    kind: ClassVar[str] = "joints"
    columns: ClassVar[tuple[str, ...]] = ("joints", "PCK@0.1", "strict")
    worst_first: ClassVar[str] = "PCK@0.1"

    def score(self, video: Video[Any], results: Sequence[Any]) -> Scores:
        return {
            name: [[_plain(error) for error in frame] for frame in score_joints(video, results, strict=strict)]
            for name, strict in (("errors", False), ("strict errors", True))
        }

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        row: dict[str, float] = {}
        for name, suffix in (("errors", ""), ("strict errors", " strict")):
            errors = [
                np.array([[_number(error) for error in frame] for frame in each[name]]) for each in scores.values()
            ]
            row |= {f"PCK@{alpha}{suffix}": pck(errors, alpha) for alpha in ALPHAS}
        return row

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["errors"][0])), _percent(row["PCK@0.1"]), _percent(row["PCK@0.1 strict"])

    def value(self, scores: Scores) -> float:
        return self.row({"": scores})["PCK@0.1"]


@dataclass(frozen=True)
class Unscored:
    """Anyone's own video: nothing to score against."""

    kind: ClassVar[str] = "unscored"
    columns: ClassVar[tuple[str, ...]] = ("objects",)
    worst_first: ClassVar[str] = "name"

    def score(self, video: Video[Any], results: Sequence[Any]) -> Scores:
        return {"objects": len(np.unique(video.first[video.first > 0]))}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return {}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        return (str(scores["objects"]),)

    def value(self, scores: Scores) -> float:
        return math.nan


Benchmark = Objects | Classes | Keypoints | Unscored

OBJECTS, VIP, CAMVID, JOINTS, UNSCORED = (
    Objects(),
    Classes(VIP_CLASSES),
    Classes(CAMVID_CLASSES),
    Keypoints(),
    Unscored(),
)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _plain(error: float) -> float | str | None:
    """An error as JSON knows it: null for one that is not counted, "inf" for a miss at any distance."""
    return None if math.isnan(error) else "inf" if math.isinf(error) else float(error)


def _number(error: float | str | None) -> float:
    return math.nan if error is None else float(error)
