"""What a benchmark is, and the three ways to count: J and F of objects, mean IoU of classes, PCK of joints.

The scores of a video are plain values that JSON can hold, and the row of the papers' tables is computed from the scores
of all videos alone: it is the same to the last bit whether the videos were followed in one go, after an interruption,
or by several processes.

Legend: T frames, M objects, C classes, J joints.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from common.errors import InputError
from evaluation import protocols
from evaluation.metrics import STATISTICS, confusion, joint_errors, mean_iou, pck, region_and_contour, statistics
from evaluation.protocols import Protocol
from evaluation.videos import Label, Video

Scores = dict[str, Any]
Record = dict[str, Any]  # video, frames, seconds, scores, …: what is kept of a finished video

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Benchmark(ABC):
    """A data set and how it is scored; the fields are the flags of `siammae eval NAME`.

    columns: what `cells` says of a video. measure: the number of the row by which videos are ordered, worst first.
    void: true labels from this one on are not scored. changes: what differs from the protocols of DAVIS, for all of
    them ("") and by name.
    """

    data: Path
    """the data set's folder, in its official layout; nothing is written there"""

    columns: ClassVar[tuple[str, ...]] = ()
    measure: ClassVar[str] = ""
    void: ClassVar[int] = 256
    changes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @abstractmethod
    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        """The videos, or those with the names; nothing of the others need be there."""

    @abstractmethod
    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        """What the labels of all frames are worth, the first included; opens the video's truth."""

    @abstractmethod
    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The row of the papers' tables, as fractions, from the scores of the videos by name."""

    @abstractmethod
    def cells(self, scores: Scores) -> tuple[str, ...]:
        """A video's line in the printed table."""

    def value(self, scores: Scores) -> float:
        """The one number by which videos are ordered; NaN where there is none."""
        return self.row({"": scores}).get(self.measure, math.nan)

    def protocol(self, name: str = "paper", **overrides: Any) -> Protocol:
        """The named protocol as it is on this benchmark, with fields overridden."""
        return protocols.protocol(name, {**self.changes.get("", {}), **self.changes.get(name, {})}, **overrides)

    def key(self) -> dict[str, Any]:
        """Plain values: what tells the results of this benchmark from those of another."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: value for name, value in values.items() if value is not None and not isinstance(value, Path)}
        return {"name": type(self).__name__, **plain}

    def write(self, folder: Path, row: Mapping[str, float], records: Sequence[Record]) -> None:  # noqa: B027
        """Write into the folder of the results what the official tool writes, where there is one."""


class Objects(Benchmark):
    """J and F of each object over the frames between the first and the last (DAVIS, semi-supervised)."""

    columns = ("objects", "J", "F")
    measure = "J&F-Mean"

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        """The objects are 1 … the largest label of the first mask; a result with a larger one is refused."""
        objects = int(video.first.max())
        if len(video) < 3:
            raise InputError(
                f"{video.name} has {len(video)} frames; J and F leave out the first and the last, and need 3"
            )
        values, occurring = [], set(np.unique(video.first).tolist())  # [2, M] of each frame
        for index, truth, result in video.truth(results):
            if result.max(initial=0) > objects:
                raise InputError(
                    f"{video.name}, frame {index}: label {result.max()} in the result, of {objects} objects"
                )
            values.append(region_and_contour(truth, result, objects))
            occurring |= set(np.unique(truth).tolist())
        if len(values) < 3:
            raise InputError(f"{video.name}: no frame between the first and the last has a mask to score against")
        j, f = np.array(values[1:-1]).transpose(1, 2, 0)  # [M, T] each
        scores: Scores = {
            "objects": [
                {"object": number + 1, **statistics("J", j[number]), **statistics("F", f[number])}
                for number in range(objects)
            ]
        }
        absent = set(range(1, objects + 1)) - occurring
        notes = list(video.notes)
        if absent:
            real = {"objects": [entry for entry in scores["objects"] if entry["object"] not in absent]}
            notes.append(
                f"the labels go up to {objects}, but {len(absent)} of them never occur and score 1, as officially; "
                f"over the {len(real['objects'])} that occur {self.measure} is {percent(self.value(real))}"
            )
        return scores | ({"notes": notes} if notes else {})

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The official row: the mean of each statistic over all objects of all videos; J&F is the mean of two means."""
        objects = [entry for each in scores.values() for entry in each["objects"]]
        names = [f"{measure}-{name}" for measure in "JF" for name in STATISTICS]
        means = {name: float(np.mean([entry[name] for entry in objects])) for name in names}
        return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["objects"])), percent(row["J-Mean"]), percent(row["F-Mean"])


class Classes(Benchmark):
    """Mean IoU of the classes 0 … C − 1 over all labelled frames, the first included (VIP's public script)."""

    columns = ("classes", "mIoU")
    measure = "mIoU"
    classes: ClassVar[int]

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        counts = np.zeros((self.classes, self.classes + 1), dtype=np.int64)
        for _, truth, result in video.truth(results):
            counts += confusion(truth, result, self.classes)
        return {"counts": counts.tolist()}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return {"mIoU": mean_iou(np.sum([each["counts"] for each in scores.values()], axis=0, dtype=np.int64))}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        occurring = int((np.array(scores["counts"]).sum(axis=1) > 0).sum())
        return str(occurring), percent(self.value(scores))


class Keypoints(Benchmark):
    """PCK of joints (JHMDB). The public script leaves out joints without any heat; the strict count calls them misses.

    Scores, per joint: how often it was found within each α ("right"), how often it was counted, and strictly.
    """

    columns = ("joints", "PCK@0.1", "strict")
    measure = "PCK@0.1"
    changes = {"": {"size": "320x320"}}

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        rows = [(truth, result) for _, truth, result in video.truth(results)]
        truths, found = (np.stack(column) for column in zip(*rows, strict=True))
        errors = joint_errors(truths, found)
        known = ~np.isnan(errors)
        return {
            "right": [(errors <= alpha).sum(axis=0).tolist() for alpha in ALPHAS],
            "counted": (known & (found[..., 0] >= 0)).sum(axis=0).tolist(),
            "strict": known.sum(axis=0).tolist(),
        }

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        sums = {
            name: np.sum([each[name] for each in scores.values()], axis=0) for name in ("right", "counted", "strict")
        }
        return {
            f"PCK@{alpha}{suffix}": pck(right, sums[count])
            for count, suffix in (("counted", ""), ("strict", " strict"))
            for alpha, right in zip(ALPHAS, sums["right"], strict=True)
        }

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["strict"])), percent(row["PCK@0.1"]), percent(row["PCK@0.1 strict"])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"
