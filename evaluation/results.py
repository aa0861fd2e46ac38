"""What an evaluation leaves in its folders, and what lets it go on after an interruption.

run.json                         benchmark, protocol, source: what every result in this folder was made with
videos/<video>.json              the scores of a finished video; a resumed run skips these videos
results.json                     everything: row, scores of each video, protocol, commit, versions, time, memory
pictures/, index.html            strips, videos and a page over them, where they were asked for

A folder of exports keeps its own run.json and videos/ in .siammae/, which the official tool does not look into.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_json
from evaluation.benchmark import Benchmark, Record
from evaluation.controls import true_labels
from evaluation.page import write_page
from evaluation.pictures import WriteVideo, show
from evaluation.videos import Label, Video
from pages.surroundings import surroundings

_PACKAGES = ("torch", "timm", "numpy", "opencv-python-headless", "pillow")


class Store:
    """The folders of one run: `key` (plain values) tells what the results were made with.

    Raises InputError for a folder within a video's data set, for one that holds the results of another run, and for
    one that holds anything else. Without `out` nothing is known of a finished video.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        key: Mapping[str, Any],
        videos: Sequence[Video],
        out: str | Path | None,
        export: str | Path | None,
        pictures: bool,
        write_video: WriteVideo | None,
    ) -> None:
        _check_names(videos)
        if out is None and pictures:
            raise InputError("pictures need a folder: give out as well")
        self.benchmark, self.write_video = benchmark, write_video
        self.folder = _Folder(Path(out), key, videos) if out is not None else None
        self.exports = _Folder(Path(export), key, videos, ".siammae") if export is not None else None
        self.pictures = self.folder.path / "pictures" if self.folder and pictures else None
        # outer folder first, so that its run.json is there before a later process finds the inner one
        for folder in sorted(
            filter(None, (self.exports, self.folder)), key=lambda each: len(each.path.resolve().parts)
        ):
            folder.claim()

    def record(self, video: Video) -> Record | None:
        """The record of a finished video of which every file that was asked for is there, or None."""
        if self.exports and self.exports.record(video) is None:
            return None
        there = all(path.is_file() for path in self._files(video))
        return self.folder.record(video) if self.folder and there else None

    def keep(self, video: Video, results: Sequence[Label], record: Record) -> None:
        """Write what was asked for; the record comes last, and says that all is there."""
        if self.exports:
            self.benchmark.export(self.exports.path, video, results)
            self.exports.keep(video, {name: record[name] for name in ("video", "frames", "first")})
        if self.pictures:
            truths = true_labels(video)
            show(self.pictures, video, truths, results, void=self.benchmark.void, write_video=self.write_video)
        if self.folder:
            self.folder.keep(video, record)

    def finish(self, heading: str, row: Mapping[str, float], in_words: str, records: Sequence[Record]) -> None:
        """Write results.json, the files of the official tool and the page."""
        if self.folder is None:
            return
        memory = [record["memory"] for record in records]
        kinds = sorted({name for each in memory for name in each})
        content = dict(
            row={name: value if value == value else None for name, value in row.items()},
            in_words=heading, **self.folder.key, seconds=sum(record["seconds"] for record in records),
            peak_memory={name: max(each.get(name, 0) for each in memory) for name in kinds}, **surroundings(_PACKAGES),
            videos=records,
        )  # fmt: skip
        write_json(self.folder.path / "results.json", content)
        self.benchmark.write(self.folder.path, row, records)
        if self.pictures:
            entries = [(r["video"], self.benchmark.value(r["scores"]), r["frames"]) for r in records]
            write_page(
                self.folder.path,
                [heading, in_words],
                entries,
                measure=self.benchmark.measure,
                joints=self.benchmark.points,
                notes={r["video"]: r["scores"].get("notes", ()) for r in records},
            )

    def _files(self, video: Video) -> list[Path]:
        files = []
        if self.exports:
            files.append(self.exports.path / self.benchmark.exported(video))
        if self.pictures:
            suffixes = (".png", ".mp4") if self.write_video else (".png",)
            files += [self.pictures / f"{video.name}{suffix}" for suffix in suffixes]
        return files


class _Folder:
    """A folder that holds one run; run.json and videos/ lie in `inside` of it."""

    def __init__(self, path: Path, key: Mapping[str, Any], videos: Sequence[Video], inside: str = "") -> None:
        self.path, self._inside = path, path / inside
        _refuse_data_folder(path, videos)
        self.key = json.loads(json.dumps(key))
        refuse_others(path, self._inside / "run.json", self.key)

    def claim(self) -> None:
        """Make the folder this run's."""
        write_json(self._inside / "run.json", self.key)

    def record(self, video: Video) -> Record | None:
        """What is known of a finished video, or None."""
        path = self._path(video)
        if not path.is_file():
            return None
        record = _read(path)
        if record.get("first") != digest(video.first) or record.get("frames") != len(video):
            raise InputError(f"{path} is about another video {video.name!r} than the one given; name another folder")
        return record

    def keep(self, video: Video, record: Record) -> None:
        write_json(self._path(video), record)

    def _path(self, video: Video) -> Path:
        return self._inside / "videos" / f"{video.name}.json"


def refuse_others(folder: Path, mark: Path, key: Mapping[str, Any]) -> None:
    """Nothing is ever overwritten: a folder must be empty, dot-files aside, or `mark` in it hold this key."""
    occupied = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if mark.is_file():  # looked for last: a process beside this one may be the first in the folder
        differing = _differences(_read(mark), key)
        if differing:
            raise InputError(f"{folder} holds results of another run ({'; '.join(differing)}); name another folder")
    elif occupied:
        raise InputError(f"{folder} holds files that are not of this run, and is not overwritten; name another folder")


def digest(label: Label) -> str:
    """What tells one video from another of the same name: its first label."""
    return hashlib.sha256(str(label.shape).encode() + label.tobytes()).hexdigest()[:16]


def peak_memory() -> dict[str, int]:
    """The most bytes that this process has held until now, and on a GPU, where one is used."""
    import torch

    peak: dict[str, int] = {}
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:  # Windows
        pass
    if torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _check_names(videos: Sequence[Video]) -> None:
    """Names become files: they must differ, and lead nowhere else."""
    names = [video.name for video in videos]
    if not names:
        raise InputError("there is no video to evaluate")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two videos are called {name!r}; results are kept by name")
        if name.startswith("/") or ".." in Path(name).parts or not name:
            raise InputError(f"a video called {name!r} leads out of the folder of the results")


def _refuse_data_folder(path: Path, videos: Sequence[Video]) -> None:
    """Nothing is ever written into a data set's folder."""
    target = path.resolve()
    for root in {root.resolve() for video in videos for root in video.roots}:
        if target == root or root in target.parents:
            raise InputError(f"{path} lies in the data set's folder {root}, where nothing is written; name another one")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result ({error}); move it away") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a result of an evaluation; name another folder")
    return content


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """The plain values in which two runs differ, in words."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*then, *now]))
        return [word for key in keys for word in _differences(then.get(key), now.get(key), f"{name} {key}".strip())]
    return [] if then == now else [f"{name} was {then!r} and is now {now!r}"]
