"""What a benchmark is, and the three ways to count: J and F of objects, mean IoU of classes, PCK of joints.

The scores of a video are plain values that JSON can hold, and the row of the papers' tables is computed from the scores
of all videos alone: it is the same to the last bit whether the videos were followed in one go, after an interruption,
or by several processes.

Legend: T frames, M objects, C classes, J joints.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from common.errors import InputError
from common.files import read_text, write_json
from evaluation import protocols
from evaluation.metrics import STATISTICS, confusion, joint_errors, mean_iou, pck, region_and_contour, statistics
from evaluation.protocols import Protocol
from evaluation.videos import Label, Mask, Video, check_size, expecting, read_mask

if TYPE_CHECKING:
    from evaluation.controls import Tracker

Scores = dict[str, Any]
Record = dict[str, Any]  # video, frames, seconds, scores, …: what is kept of a finished video

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Benchmark(ABC):
    """A data set and how it is scored; the fields are the flags of `siammae eval NAME`.

    columns: what `cells` says of a video. measure: the number of the row by which videos are ordered, worst first.
    void: true labels from this one on are not scored. points: whether labels are points, not masks. changes: what
    differs from the protocols of DAVIS, for all of them ("") and by name.
    """

    data: Path
    """the data set's folder, in its official layout; nothing is written there"""

    columns: ClassVar[tuple[str, ...]] = ()
    measure: ClassVar[str] = ""
    void: ClassVar[int] = 256
    points: ClassVar[bool] = False
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

    def follow(self, video: Video, by: "Tracker", protocol: Protocol, *, batch: int = 1) -> Iterator[Label]:
        """The labels of all frames of a video in order, including the given first one."""
        from evaluation.controls import follow

        return follow(video, by, protocol, batch=batch)

    def heading(self, protocol: Protocol) -> str:
        """How labels are followed, as a line that stands beside every number."""
        return str(protocol)

    def export(self, folder: Path, video: Video, results: Sequence[Label]) -> None:
        """Write the results as the official tool reads them: masks as palette PNGs under the names of their frames."""
        from evaluation.pictures import save_mask

        for path, mask in zip(video.paths, results, strict=True):
            save_mask(folder / video.name / f"{path.stem}.png", mask)

    def exported(self, video: Video) -> str:
        """The last file that `export` writes."""
        return f"{video.name}/{video.paths[-1].stem}.png"

    def imported(self, folder: Path, video: Video) -> list[Label]:
        """Anyone's results, as `export` writes them; frames that are not scored may be missing."""
        files = [folder / video.name / f"{path.stem}.png" for path in video.paths]
        if not files[0].parent.is_dir():
            raise InputError(f"{files[0].parent} does not exist: expected the results of {video.name}")
        results = []
        for index, file in enumerate(files):
            mask = video.first if index in self.unscored(video) and not file.exists() else self.read_result(file)
            check_size(mask.shape, video.first.shape, video.paths[index], file)
            results.append(mask)
        return results

    def unscored(self, video: Video) -> tuple[int, ...]:
        """The frames whose results do not count."""
        return (0,)

    def read_result(self, file: Path) -> Label:
        """One of the files that `export` writes."""
        return read_mask(file)

    def value(self, scores: Scores) -> float:
        """The one number by which videos are ordered; NaN if undefined."""
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

    columns: ClassVar[tuple[str, ...]] = ("objects", "J", "F")
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

    def unscored(self, video: Video) -> tuple[int, ...]:
        return (0, len(video) - 1)

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The official row: the mean of each statistic over all objects of all videos; J&F is the mean of two means."""
        objects = [entry for each in scores.values() for entry in each["objects"]]
        names = [f"{measure}-{name}" for measure in "JF" for name in STATISTICS]
        means = {name: float(np.mean([entry[name] for entry in objects])) if objects else math.nan for name in names}
        return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["objects"])), percent(row["J-Mean"]), percent(row["F-Mean"])


class LateObjects(Objects):
    """J and F of each object over the frames after its first, in which its mask is given (YouTube-VOS)."""

    def video(
        self, name: str, paths: tuple[Path, ...], given: Mapping[int, Mask], label: Callable[[int], Mask | None]
    ) -> Video:
        """A video from the first frame with a given mask on; nothing can be followed before."""
        begin = min(given)
        later = {index - begin: mask for index, mask in given.items() if index > begin}
        return Video(name, paths[begin:], given[begin], lambda index: label(index + begin), (self.data,), later=later)

    def unscored(self, video: Video) -> tuple[int, ...]:
        return (0,)

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        given = {0: video.first, **video.later}
        starts = {int(label): frame for frame, mask in given.items() for label in np.unique(mask[mask > 0])}
        values: dict[int, list[tuple[float, float]]] = {label: [] for label in starts}
        for index, truth, result in video.truth(results):
            j, f = region_and_contour(truth, result, max(starts, default=0))
            for label, start in starts.items():
                if index > start:
                    values[label].append((j[label - 1], f[label - 1]))
        objects = [
            {"object": label, **statistics("J", [j for j, _ in each]), **statistics("F", [f for _, f in each])}
            for label, each in sorted(values.items())
            if each
        ]
        notes = list(video.notes)
        if len(objects) < len(starts):
            notes.append(f"{len(starts) - len(objects)} objects start in the last labelled frame, and are not scored")
        return {"objects": objects} | ({"notes": notes} if notes else {})


class Classes(Benchmark):
    """Mean IoU of the classes 0 … C − 1 over all labelled frames, the first included (VIP's public script)."""

    columns: ClassVar[tuple[str, ...]] = ("classes", "mIoU")
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

    columns: ClassVar[tuple[str, ...]] = ("joints", "PCK@0.1", "strict")
    measure = "PCK@0.1"
    points = True
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

    def export(self, folder: Path, video: Video, results: Sequence[Label]) -> None:
        """Joints as JSON, null for one that was lost."""
        frames = [
            {"frame": path.stem, "joints": [place if place[0] >= 0 else None for place in joints.tolist()]}
            for path, joints in zip(video.paths, results, strict=True)
        ]
        write_json(folder / self.exported(video), frames)

    def exported(self, video: Video) -> str:
        return f"{video.name}.json"

    def imported(self, folder: Path, video: Video) -> list[Label]:
        file = folder / self.exported(video)
        with expecting(f"{file} does not hold joints of every frame of {video.name}"):
            joints = {entry["frame"]: entry["joints"] for entry in json.loads(read_text(file))}
            shape = video.first.shape
            lost = [-1.0] * shape[1]
            found = [
                np.array([lost if place is None else place for place in joints[path.stem]], dtype=np.float64)
                for path in video.paths
            ]
        if any(each.shape != shape for each in found):
            raise InputError(f"{file}: expected joints of shape {shape} in every frame, as the truth has them")
        return list(found)

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(len(scores["strict"])), percent(row["PCK@0.1"]), percent(row["PCK@0.1 strict"])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"
