"""TAP-Vid: any point, anywhere in a video (Doersch et al. 2022).

Legend: T frames, N queries.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import InputError
from common.files import load_arrays
from evaluation.benchmark import Keypoints, Scores, percent
from evaluation.protocols import Protocol
from evaluation.videos import Frame, Label, Video, folder_of, select, visible

SIDE = 256  # pixels: frames are resized to this square, and distances count in its pixels
DISTANCES = (1, 2, 4, 8, 16)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TapVid(Keypoints):
    """TAP-Vid, AJ, δ_avg and OA of points: a pickle of DAVIS, Kinetics (or its folder of parts) or RGB-stacking.

    Points are matched, each by itself (evaluation/points.py). δ_avg: the share of visible points within 1, 2, 4, 8, 16
    pixels of 256, their mean. OA: how often occlusion is right. AJ: both at once.
    """

    data: Path
    """the pickle, or a folder of them; nothing is written there"""
    mode: Literal["first", "strided"] = "first"
    """queries: each track at its first visible frame, or all visible ones in every fifth frame"""

    columns = ("queries", "AJ", "d_avg", "OA")
    measure = "d_avg"
    changes = {"": {"size": "1024x1024"}}

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        files = [self.data] if self.data.is_file() else []
        if self.data.is_dir():
            files = [path for path in visible(self.data) if path.suffix == ".pkl"]
        if not files:
            raise InputError(f"{self.data} is no pickle of TAP-Vid, nor a folder that holds one (*.pkl)")
        parts = [read_pickle(file) for file in files]
        if isinstance(parts[0], Mapping):
            entries = {name: entry for part in parts for name, entry in part.items()}
        else:
            everything = [entry for part in parts for entry in part]
            entries = {f"{number:04d}": entry for number, entry in enumerate(everything)}
        for name in select(list(entries), names):
            yield self._video(name, entries[name])

    def _video(self, name: str, entry: Any) -> Video:
        try:
            stored, points, occluded = (
                entry["video"],
                np.asarray(entry["points"]),
                np.asarray(entry["occluded"]).astype(bool),
            )
            if points.shape != (*occluded.shape, 2) or occluded.shape[1] != len(stored):
                raise ValueError(f"points {points.shape}, occluded {occluded.shape}, {len(stored)} frames")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.data}: {name} is not TAP-Vid's: expected video [T, H, W, 3], points [N, T, 2] and "
                f"occluded [N, T] ({error})"
            ) from error
        tracks, frames = (queries_first if self.mode == "first" else queries_strided)(occluded)
        if not len(tracks):
            raise InputError(f"{name}: no point is ever visible")
        opening = _frame(stored[0])
        scale = np.array([opening.shape[1], opening.shape[0]])
        truth = np.where(occluded[..., None], np.nan, points)[tracks].astype(np.float64)  # [N, T, 2] in 0 … 1
        places = points[tracks, frames].astype(np.float64)
        first = np.column_stack([places * scale, frames])  # x, y in pixels, and the frame
        return Video(
            name,
            tuple(Path(f"{index:05d}") for index in range(len(stored))),
            first,
            lambda index: truth[:, index] * scale,
            folder_of(self.data) if self.data.is_file() else (self.data,),
            lambda numbers: (_frame(stored[number]) for number in numbers),
        )

    def follow(self, video: Video, by: Any, protocol: Protocol, *, batch: int = 1) -> Iterator[Label]:
        """Of each frame [N, 3]: x, y in pixels of the video, and whether the point is occluded."""
        from evaluation.features import Source
        from evaluation.points import follow_points

        if not isinstance(by, Source):
            if hasattr(by, "source"):
                raise InputError("points are matched to their query alone: there is no oracle of TAP-Vid")
            still = np.column_stack([video.first[:, :2], np.zeros(len(video.first))])
            yield from [still] * len(video)
            return
        by.compared_by_cosine("the matching of TAP-Vid's points")
        height, width = next(video.frames([0])).shape[:2]
        scale = np.array([width, height, 1.0])
        queries = np.column_stack([video.first[:, 2], video.first[:, 1] / height, video.first[:, 0] / width])
        asked = queries[:, 0] < len(video)  # the others' frames were left out
        small = (
            np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            for frame in video.frames()
        )
        size = protocol.input_size(SIDE, SIDE, by.patch_size)
        for found in follow_points(small, queries[asked], by.encode, size, batch=batch):
            every = np.ones((len(queries), 3)) * (-1, -1, 1)
            every[asked] = found * scale
            yield every

    def heading(self, protocol: Protocol) -> str:
        from evaluation import points

        return (
            f"TAP-Vid, {self.mode}: points matched to their queries, frames of {SIDE}×{SIDE} enlarged to "
            f"{protocol.size.replace('x', '×')}, soft-argmax within {points.WINDOW} cells at T {points.TEMPERATURE:g}, "
            f"occluded where the way back misses by more than {points.BACK * SIDE:.0f} pixels"
        )

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        height, width = next(video.frames([0])).shape[:2]
        to_side = SIDE / np.array([width, height])
        asked = video.first[:, 2] < len(video)
        truth = np.stack([label for _, label, _ in video.truth(results)], axis=1)[asked] * to_side  # [N, T, 2]
        found = np.stack(results, axis=1)[asked]  # [N, T, 3]
        occluded = np.isnan(truth[..., 0])
        measured = tap_metrics(
            video.first[asked, 2].astype(int), occluded, truth, found[..., 2] > 0.5, found[..., :2] * to_side, self.mode
        )
        plain = {name: None if np.isnan(value) else value for name, value in measured.items()}
        return {"queries": len(found), "measures": plain}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The plain mean over videos of each measure; videos without a visible point to score are left out."""
        row = {}
        for name in ("AJ", "d_avg", "OA", *(f"d_{d}" for d in DISTANCES), *(f"J_{d}" for d in DISTANCES)):
            values = [each["measures"][name] for each in scores.values() if each["measures"][name] is not None]
            row[name] = float(np.mean(values)) if values else float("nan")
        return row

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(scores["queries"]), *(percent(row[name]) for name in ("AJ", "d_avg", "OA"))


def queries_first(occluded: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Occlusion [N, T] → tracks and frames of the queries: each track once, where it is first visible."""
    tracks = np.flatnonzero(~occluded.all(axis=1))
    return tracks, (~occluded[tracks]).argmax(axis=1)


def queries_strided(occluded: Bools, stride: int = 5) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Occlusion [N, T] → tracks and frames of the queries: all that are visible, in every fifth frame."""
    frames, tracks = np.nonzero(~occluded.T[::stride])
    return tracks, frames * stride


def tap_metrics(
    query_frames: NDArray[np.integer],
    occluded: Bools,
    points: Floats,
    found_occluded: Bools,
    found: Floats,
    mode: Literal["first", "strided"],
) -> dict[str, float]:
    """Of one video: occlusion [N, T] and points [N, T, 2] in pixels of 256, true and found → OA, d_1 …, J_1 …, means.

    "first" evaluates the frames after the query, "strided" all but the query's.
    """
    times = np.arange(occluded.shape[1])
    counted = times > query_frames[:, None] if mode == "first" else times != query_frames[:, None]
    visible, found_visible = ~occluded & counted, ~found_occluded & counted
    squares = np.where(visible, np.square(found - points).sum(axis=-1), np.inf)  # of occluded points nobody knows
    total = np.count_nonzero(visible)
    right = np.count_nonzero((occluded == found_occluded) & counted)
    measures = {"OA": _share(right, np.count_nonzero(counted))}
    for distance in DISTANCES:
        within = squares < distance**2
        hits = np.count_nonzero(within & found_visible)
        wrong = np.count_nonzero(found_visible & ~within)
        measures[f"d_{distance}"] = _share(np.count_nonzero(within), total)
        measures[f"J_{distance}"] = _share(hits, total + wrong)
    for name, letter in (("d_avg", "d"), ("AJ", "J")):
        measures[name] = float(np.mean([measures[f"{letter}_{distance}"] for distance in DISTANCES]))
    return measures


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")


def _frame(stored: Any) -> Frame:
    """A frame [H, W, 3], from an array or from the bytes of a JPEG."""
    if isinstance(stored, bytes):
        return np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
    return np.asarray(stored, dtype=np.uint8)


def read_pickle(file: Path) -> Any:
    """A pickle of numpy arrays and plain values."""
    try:
        with open(file, "rb") as stream:
            return load_arrays(stream)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle can break in any way
        raise InputError(
            f"{file} is no pickle of TAP-Vid ({error}): expected numpy arrays and plain values; get it again"
        ) from error
