"""UVO dense (Wang et al. 2021): every object of a video, as YouTube-VIS JSON.

Legend: T frames, H W pixels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.files import read_text
from evaluation.benchmark import LateObjects, Scores, percent
from evaluation.videos import Label, Mask, Video, expecting, select

THRESHOLDS = np.arange(10) * 0.05 + 0.5


@dataclass(frozen=True)
class UVO(LateObjects):
    """UVO dense, J and F of each object after its first frame, and AP and AR@100 of what is propagated:
    VideoDenseSet/UVO_video_<split>_dense.json and uvo_videos_dense_frames/<video>/.

    An object's mask is given in its first frame, so AP and AR@100 (video IoU, classes ignored, all tracks equally sure)
    are no scores of detection. Where objects overlap, the smaller one lies on top.
    """

    split: str = "val"
    """which JSON file"""

    columns = ("objects", "J", "F", "AP", "AR@100")

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        file = self.data / "VideoDenseSet" / f"UVO_video_{self.split}_dense.json"
        with expecting(f"{file} is not UVO's: expected videos and annotations of YouTube-VIS"):
            content: Any = json.loads(read_text(file))
            entries = {video["ytid"]: video for video in content["videos"]}
            tracks: dict[int, list[Any]] = {video["id"]: [] for video in content["videos"]}
            for annotation in content["annotations"]:
                tracks[annotation["video_id"]].append(annotation["segmentations"])
        for name in select(list(entries), names):
            yield self._video(name, entries[name], tracks[entries[name]["id"]])

    def _video(self, name: str, entry: dict[str, Any], tracks: list[list[Any]]) -> Video:
        paths = tuple(self.data / "uvo_videos_dense_frames" / file for file in entry["file_names"])
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{name}: {missing[0]} does not exist, nor do {len(missing) - 1} more of its pictures")
        size = (entry["height"], entry["width"])
        if not 0 < len(tracks) < 255:
            raise InputError(f"{name} has {len(tracks)} objects; expected 1 to 254")
        starts = [next((t for t, found in enumerate(track) if found), None) for track in tracks]

        def label(index: int, chosen: Sequence[int] = range(len(tracks))) -> Mask:
            masks = [
                (number + 1, decode_rle(tracks[number][index], size)) for number in chosen if tracks[number][index]
            ]
            result = np.zeros(size, dtype=np.uint8)
            for number, mask in sorted(masks, key=lambda item: -int(item[1].sum())):
                result[mask] = number
            return result

        known = {start for start in starts if start is not None}
        if not known:
            raise InputError(f"{name}: no object has a mask")
        given = {start: label(start, [n for n, first in enumerate(starts) if first == start]) for start in known}
        return self.video(name, paths, given, label)

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        pairs = [(truth, result) for _, truth, result in video.truth(results)]
        return super().score(video, results) | recalled(pairs)

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        tracks = sum(each["tracks"] for each in scores.values())
        hits = [np.concatenate([each["hits"][t] for each in scores.values()]) for t in range(len(THRESHOLDS))]
        precisions = [average_precision(each, tracks) for each in hits]
        return super().row(scores) | {
            "AP": float(np.mean(precisions)),
            "AP50": precisions[0],
            "AP75": precisions[5],
            "AR@100": float(np.mean([each.sum() / tracks for each in hits])),
        }

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return *super().cells(scores), *(percent(row[name]) for name in ("AP", "AR@100"))


def average_precision(hits: NDArray[np.integer], tracks: int) -> float:
    """Whether each track that was found, the surest first, is one of so many true ones → the mean precision at 101
    recalls, as COCO's and YouTube-VIS's tool has it: at each the best of those that reach it."""
    true = np.cumsum(hits)
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(true / tracks, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[places].mean())


def recalled(pairs: Sequence[tuple[Mask, Mask]], most: int = 100) -> Scores:
    """Label maps of true and found frames → the number of `tracks`, and which found ones are `hits` at each of the
    ten thresholds of video IoU.

    The official matching, with every detection equally sure: in order, each takes the free track of largest IoU that
    reaches the threshold, of equals the later one.
    """
    counts = np.zeros((256, 256), dtype=np.int64)
    for truth, found in pairs:
        counts += np.bincount((truth.astype(np.int64) * 256 + found).ravel(), minlength=counts.size).reshape(256, 256)
    true, seen = (np.flatnonzero(counts.sum(axis=axis)[1:]) + 1 for axis in (1, 0))
    union = counts.sum(axis=1)[true][:, None] + counts.sum(axis=0)[seen] - counts[np.ix_(true, seen)]
    iou: NDArray[np.float64] = counts[np.ix_(true, seen)] / union  # [tracks, found]
    hits = []
    for threshold in THRESHOLDS:
        free, taken = np.ones(len(true), dtype=bool), []
        for column in iou.T[:most]:
            best, chosen = min(threshold, 1 - 1e-10), -1
            for track in np.flatnonzero(free):
                if column[track] >= best:
                    best, chosen = float(column[track]), int(track)
            taken.append(int(chosen >= 0))
            if chosen >= 0:
                free[chosen] = False
        hits.append(taken)
    return {"hits": hits, "tracks": len(true)}


def decode_rle(coded: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """COCO's run lengths (column by column, background first; a list, or its compressed string) → a mask [H, W]."""
    runs = coded["counts"] if isinstance(coded["counts"], list) else _uncompressed(coded["counts"])
    if sum(runs) != size[0] * size[1]:
        raise InputError(
            f"run lengths of {sum(runs)} pixels in a picture of {size[0]}×{size[1]}: the JSON file is damaged"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size, order="F")


def _uncompressed(text: str) -> list[int]:
    """COCO's string: five bits a character, the sixth says that more follow; from the third run on, differences."""
    runs: list[int] = []
    characters = iter(text.encode())
    for character in characters:
        value, shift, code = 0, 0, character - 48
        while True:
            value |= (code & 31) << shift
            shift += 5
            if not code & 32:
                break
            code = next(characters) - 48
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
