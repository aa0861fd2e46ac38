"""KITTI-STEP: classes and instances through driving scenes (Weber et al. 2021), scored by STQ.

An id is class · 65536 + instance. Legend: H W pixels, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from evaluation.benchmark import Benchmark, Scores, percent
from evaluation.protocols import Protocol
from evaluation.videos import Label, Video, check_size, picture_size, pictures_in, read_frame, select, visible

Ids = NDArray[np.int64]

CLASSES, VOID, THINGS = 19, 255, (11, 13)  # person, car
UNKNOWN = 255  # in a map of the first frame's ids: a pixel without a class


@dataclass(frozen=True)
class KittiStep(Benchmark):
    """KITTI-STEP, STQ: images/<split>/<sequence>/ and panoptic_maps/<split>/<sequence>/ (red: class, green · 256 +
    blue: instance). What the first frame shows is followed; things that appear later are missed.
    """

    split: str = "val"
    """which folder of images/ and panoptic_maps/"""

    columns = ("ids", "STQ", "AQ", "SQ")
    measure = "STQ"
    void = VOID << 16

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        images, maps = (self.data / kind / self.split for kind in ("images", "panoptic_maps"))
        if not images.is_dir() or not maps.is_dir():
            raise InputError(f"{self.data} lacks images/{self.split}/ and panoptic_maps/{self.split}/ of KITTI-STEP")
        for name in select([path.name for path in visible(maps) if path.is_dir()], names):
            paths = pictures_in(images / name)

            def label(index: int, name: str = name, paths: tuple[Path, ...] = paths) -> Ids | None:
                file = maps / name / f"{paths[index].stem}.png"
                return read_panoptic(file) if file.exists() else None

            first = label(0)
            if first is None:
                raise InputError(
                    f"{name}: {maps / name / paths[0].stem}.png does not exist, the map of the first picture"
                )
            check_size(first.shape, picture_size(paths[0]), paths[0], maps / name / f"{paths[0].stem}.png")
            yield Video(name, paths, first, label, (self.data,))

    def follow(self, video: Video, by: Any, protocol: Protocol, *, batch: int = 1) -> Iterator[Label]:
        """The ids of the first frame are numbered, and their numbers followed as a mask."""
        from evaluation.controls import follow

        ids = np.unique(video.first)
        ids = ids[ids >> 16 != VOID]
        if len(ids) > UNKNOWN:
            raise InputError(f"{video.name}: the first frame holds {len(ids)} ids; at most {UNKNOWN} can be followed")
        back = np.append(ids, np.full(256 - len(ids), VOID << 16))

        def numbers(label: Ids) -> Label:
            places = np.searchsorted(ids, label).clip(max=len(ids) - 1)
            return np.where(ids[places] == label, places, UNKNOWN).astype(np.uint8)

        def known(index: int) -> Label | None:
            label = video.label(index)
            return None if label is None else numbers(label)

        small = replace(video, first=numbers(video.first), label=known)
        return (back[mask] for mask in follow(small, by, protocol, batch=batch, void=UNKNOWN))

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        return stq_counts([(truth, result) for _, truth, result in video.truth(results)])

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return stq(list(scores.values()))

    def cells(self, scores: Scores) -> tuple[str, ...]:
        row = self.row({"": scores})
        return str(scores["tubes"]), *(percent(row[name]) for name in ("STQ", "AQ", "SQ"))

    def export(self, folder: Path, video: Video, results: Sequence[Label]) -> None:
        from evaluation.pictures import save_picture

        for path, ids in zip(video.paths, results, strict=True):
            coded = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
            save_picture(folder / video.name / f"{path.stem}.png", coded)

    def read_result(self, file: Path) -> Ids:
        return read_panoptic(file)


def read_panoptic(file: Path) -> Ids:
    """A panoptic map as ids [H, W]."""
    coded = read_frame(file).astype(np.int64)
    return (coded[..., 0] << 16) + (coded[..., 1] << 8) + coded[..., 2]


def stq_counts(pairs: Sequence[tuple[Ids, Ids]]) -> Scores:
    """Ids [H, W] of true and predicted frames → what STQ of one sequence is made of, in counts of pixels.

    confusion: [C + 1, C + 1], truth by prediction, void last. association: Σ over true tubes, as AQ defines it; tubes:
    how many there are. Where the truth is a crowd (a thing without instance), the prediction is not judged.
    """
    counts = np.zeros((CLASSES + 1, CLASSES + 1), dtype=np.int64)
    areas: list[dict[int, int]] = [{}, {}]  # of true and predicted tubes
    shared: dict[tuple[int, int], int] = {}
    for truth, found in pairs:
        true_class, found_class = (np.where(ids >> 16 == VOID, CLASSES, ids >> 16) for ids in (truth, found))
        cells = true_class * (CLASSES + 1) + np.minimum(found_class, CLASSES)
        counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
        things = np.isin(true_class, THINGS)
        crowd = things & (truth & 0xFFFF == 0)
        true_here, found_here = things & ~crowd, np.isin(found_class, THINGS) & ~crowd
        for area, ids in zip(areas, (truth[true_here], found[found_here]), strict=True):
            for key, n in zip(*np.unique(ids, return_counts=True), strict=True):
                area[int(key)] = area.get(int(key), 0) + int(n)
        both = true_here & found_here
        for (g, p), n in _pairs(truth[both], found[both]):
            shared[g, p] = shared.get((g, p), 0) + n
    f32: Any = np.float32  # the official code sums AQ in 32 bits, and the digits show it
    association = f32(0)
    for tube, size in areas[0].items():
        inner = f32(0)
        for found_tube, found_size in areas[1].items():
            if n := shared.get((tube, found_tube)):
                area = f32(n)
                inner += area * (area / (area + (f32(found_size) - area) + (f32(size) - area)))
        association += f32(1) / f32(size) * inner
    return {"confusion": counts.tolist(), "association": float(association), "tubes": len(areas[0])}


def stq(sequences: Sequence[Scores]) -> dict[str, float]:
    """The counts of all sequences → STQ = √(AQ · SQ); AQ is the mean over all tubes of all sequences."""
    counts = np.sum([each["confusion"] for each in sequences], axis=0)
    counts[CLASSES] = 0  # predictions where the truth is void are free
    right = np.diagonal(counts)
    unions = counts.sum(axis=0) + counts.sum(axis=1) - right
    sq = float((right / np.maximum(unions, 1e-15)).sum() / max(np.count_nonzero(unions), 1e-15))
    association = np.sum([each["association"] for each in sequences], dtype=np.float32)
    aq = float(association) / max(sum(each["tubes"] for each in sequences), 1e-15)
    return {"STQ": float(np.sqrt(aq * sq)), "AQ": aq, "SQ": sq}


def _pairs(truth: Ids, found: Ids) -> Iterator[tuple[tuple[int, int], int]]:
    """Which true and predicted ids share how many pixels."""
    keys, counts = np.unique(truth << 32 | found, return_counts=True)
    for key, n in zip(keys.tolist(), counts.tolist(), strict=True):
        yield (key >> 32, key & 0xFFFFFFFF), n
