"""Evaluation is a function: videos, a source of features and a protocol in, the row of the papers' tables out.

from evaluation.datasets import davis
from evaluation.features import feature_source
from evaluation.protocols import protocol
from evaluation.run import evaluate
evaluate(davis("DAVIS"), feature_source("timm:vit_small_patch16_224.dino"), protocol("dino"), out="results/dino")
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from evaluation.benchmarks import OBJECTS, Benchmark, Keypoints
from evaluation.controls import Oracle, Tracker, follow, is_joints, true_labels
from evaluation.datasets import Video
from evaluation.features import model_source
from evaluation.page import write_page
from evaluation.pictures import WriteVideo, save_mask, show
from evaluation.protocols import Protocol
from evaluation.results import (
    Folder,
    Record,
    check_names,
    digest,
    peak_memory,
    surroundings,
    write_davis_csv,
    write_json,
)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """row: the numbers of the papers' tables, as fractions; records: video, frames, seconds, scores of each video."""

    row: dict[str, float]
    records: list[Record]
    protocol: Protocol
    source: str


def evaluate(
    videos: Iterable[Video[Any]],
    source: Tracker,
    protocol: Protocol,
    out: str | Path | None = None,
    *,
    benchmark: Benchmark = OBJECTS,
    frames: int | None = None,
    batch: int = 1,
    budget: int | None = None,
    export: str | Path | None = None,
    pictures: bool = False,
    write_video: WriteVideo | None = None,
    settings: Mapping[str, Any] | None = None,
    report: Report = print,
) -> Result:
    """Follow the labels of all videos, print a line as each is done and the row at the end, and keep both in `out`.

    A video that `out` knows as finished is not followed again, so that an interrupted call is repeated to go on. Under
    torchrun (RANK and WORLD_SIZE) the processes divide the videos and meet in `out` and `export`, which all must see;
    each returns the same result. Both folders must be empty or this run's own. Without `out` every process follows
    everything, and nothing but `export` is written.

    benchmark: what is counted. frames: only the first so many of each video. batch: frames encoded at once. budget: as
    of `propagate`. export: a folder for the results themselves, indexed PNGs as the official tool reads them (joints:
    JSON). pictures: strips and a page over all videos into `out`, and with `write_video(path, frames, fps)` videos.
    settings: further plain values on which the result depends, kept with it. report: takes the lines.
    """
    chosen = [first_frames(video, frames) for video in videos]
    check_names(chosen)
    key = dict(
        benchmark=dict(kind=benchmark.kind, **asdict(benchmark)),
        protocol=asdict(protocol),
        source=dict(name=source.name, weights=source.weights),
        frames=frames,
        settings=dict(settings or {}),
    )
    pictures = pictures or write_video is not None
    if out is None and pictures:
        raise InputError("pictures need a folder: give out as well")
    folder = Folder(out, key, chosen) if out is not None else None
    exports = Folder(export, key, chosen, inside=".siammae") if export is not None else None
    # the outer one first: a process that comes later then finds a mark beside whatever it finds
    for each in sorted(filter(None, (exports, folder)), key=lambda each: len(each.path.resolve().parts)):
        each.claim()
    files = Files(
        exports,
        folder.path / "pictures" if folder and pictures else None,
        getattr(benchmark, "classes", 256),
        write_video,
    )
    rank, world = _place() if folder else (0, 1)
    columns = ["video", *benchmark.columns, "seconds"]
    heading = _heading(source, protocol, frames)
    if rank == 0:
        report(heading)
        report(_line(columns, chosen))
    records: dict[str, Record] = {}
    for video in divide(chosen, world)[rank]:
        there, record = files.are_there(video), folder.record(video) if folder else None
        if record is None or not there:
            record = _one(video, source, protocol, benchmark, files, batch=batch, budget=budget)
            if folder:
                folder.keep(video, record)
        records[video.name] = record
        report(_line([video.name, *benchmark.cells(record["scores"]), f"{record['seconds']:.1f}"], chosen))
    if folder and world > 1:
        records = _wait_for_all(folder, files, chosen, report)
    ordered = [records[video.name] for video in chosen]
    row = benchmark.row({record["video"]: record["scores"] for record in ordered})
    result = Result(row, ordered, protocol, source.name)
    if rank == 0:
        report(f"{final_row(row)}\n{heading}" if row else "nothing to score against")
        if folder:
            _write_results(folder, result, benchmark, heading, pictures)
            report(f"results: {folder.path}/")
    return result


def propagation_score(
    videos: Iterable[Video[Any]], protocol: Protocol, *, benchmark: Benchmark = OBJECTS, frames: int | None = None
) -> Callable[[Any], dict[str, float]]:
    """What a training loop is handed, to call once in a while: a model → the row of its scores.

    The model offers `encode` and `patch_size`; it is used where it lies and left in the mode in which it was.
    """
    chosen = [first_frames(video, frames) for video in videos]

    def score(model: Any) -> dict[str, float]:
        training, device = model.training, str(next(model.parameters()).device)
        try:
            source = model_source("the model in training", model, device=device)
            return evaluate(chosen, source, protocol, benchmark=benchmark, report=lambda line: None).row
        finally:
            model.train(training)

    return score


def first_frames(video: Video[Any], frames: int | None) -> Video[Any]:
    """A video's first frames; the whole of it if it has no more, or for None."""
    if frames is not None and frames < 2:
        raise InputError(f"{frames} frames of each video were asked for; following needs at least 2")
    return replace(video, paths=video.paths[:frames])


def divide(videos: Sequence[Video[Any]], parts: int) -> list[list[Video[Any]]]:
    """Shares of about the same number of frames, alike in every process: the longest first, to the smallest share."""
    shares: list[list[Video[Any]]] = [[] for _ in range(parts)]
    frames = [0] * parts
    for video in sorted(videos, key=lambda video: (-len(video), video.name)):
        smallest = frames.index(min(frames))
        shares[smallest].append(video)
        frames[smallest] += len(video)
    order = {video.name: place for place, video in enumerate(videos)}
    return [sorted(share, key=lambda video: order[video.name]) for share in shares]


def final_row(row: Mapping[str, float]) -> str:
    """The numbers under their names, in percent."""
    names = [max(name, f"{100 * value:.1f}", key=len) for name, value in row.items()]
    head = "  ".join(f"{name:>{len(wide)}}" for name, wide in zip(row, names, strict=True))
    values = "  ".join(f"{100 * value:>{len(wide)}.1f}" for value, wide in zip(row.values(), names, strict=True))
    return f"{head}\n{values}"


def _one(
    video: Video[Any], source: Tracker, protocol: Protocol, benchmark: Benchmark, files: "Files", **options: Any
) -> Record:
    """Follow one video, score it, and write what was asked for; its record is kept last, and says that all is there."""
    known = true_labels(video) if isinstance(source, Oracle) else None
    start = time.perf_counter()
    results = list(follow(video, source, protocol, oracle=known, **options))
    seconds = time.perf_counter() - start
    scores = benchmark.score(video, results)
    files.write(video, results)
    return dict(
        video=video.name, frames=len(video), first=digest(video.first), seconds=seconds, memory=peak_memory(),
        scores=scores,
    )  # fmt: skip


@dataclass(frozen=True)
class Files:
    """What is written of each video besides its scores: its results into `export`, what they look like in `pictures`.

    void: labels of the truth from this one on are not scored.
    """

    export: Folder | None
    pictures: Path | None
    void: int
    write_video: WriteVideo | None

    def write(self, video: Video[Any], results: Sequence[Any]) -> None:
        if self.export:
            _export(self.export.path, video, results)
            self.export.keep(video, dict(video=video.name, frames=len(video), first=digest(video.first)))
        if self.pictures:
            truths = true_labels(video)
            show(self.pictures, video, truths, results, void=self.void, write_video=self.write_video)

    def are_there(self, video: Video[Any]) -> bool:
        """Whether all of a video's files lie there; raises InputError for exports of another video of its name."""
        wanted = []
        if self.export:
            if self.export.record(video) is None:
                return False
            last = f"{video.name}.json" if is_joints(video) else f"{video.name}/{video.paths[-1].stem}.png"
            wanted = [self.export.path / last]
        if self.pictures:
            wanted += [
                self.pictures / f"{video.name}{suffix}" for suffix in (".png", ".mp4")[: 1 + bool(self.write_video)]
            ]
        return all(path.is_file() for path in wanted)


def _export(folder: Path, video: Video[Any], results: Sequence[Any]) -> None:
    """Masks as palette PNGs under the names of their frames; joints as JSON, null for one that was lost."""
    named = list(zip((path.stem for path in video.paths), results, strict=True))
    if is_joints(video):
        frames = [dict(frame=name, joints=[_known(joint) for joint in joints.tolist()]) for name, joints in named]
        write_json(folder / f"{video.name}.json", frames)
    else:
        for name, mask in named:
            save_mask(folder / video.name / f"{name}.png", mask)


def _place() -> tuple[int, int]:
    """This process among those that torchrun started: (rank, world size)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _wait_for_all(folder: Folder, files: Files, videos: Sequence[Video[Any]], report: Report) -> dict[str, Record]:
    """The records of all videos, once every process has left its own, and all the files that were asked for.

    torchrun stops all processes when one fails.
    """
    records: dict[str, Record] = {}
    told, start = False, time.monotonic()
    while True:
        for video in videos:
            record = None if video.name in records else folder.record(video)
            if record is not None and files.are_there(video):
                records[video.name] = record
        missing = len(videos) - len(records)
        if not missing:
            return records
        if not told and time.monotonic() - start > 20:
            told = True
            report(f"waiting for {missing} of {len(videos)} videos that other processes follow")
        time.sleep(0.2)


def _write_results(folder: Folder, result: Result, benchmark: Benchmark, heading: str, pictures: bool) -> None:
    seconds = sum(record["seconds"] for record in result.records)
    memory = [record["memory"] for record in result.records]
    peak = {name: max(each.get(name, 0) for each in memory) for name in sorted({n for each in memory for n in each})}
    content = dict(
        row={name: _plain(value) for name, value in result.row.items()},
        in_words=heading, **folder.key, seconds=seconds, peak_memory=peak, **surroundings(),
        videos=result.records,
    )  # fmt: skip
    write_json(folder.path / "results.json", content)
    if benchmark.kind == "objects":
        write_davis_csv(folder.path, result.row, result.records)
    if pictures:
        about = [heading, final_row(result.row)]
        entries = [(r["video"], benchmark.value(r["scores"]), r["frames"]) for r in result.records]
        write_page(folder.path, about, entries, measure=benchmark.worst_first, joints=isinstance(benchmark, Keypoints))


def _heading(source: Tracker, protocol: Protocol, frames: int | None) -> str:
    """What was measured how, as one line that stands beside every number."""
    part = f"; the first {frames} frames of each video" if frames else ""
    return f"{source.name}; {protocol}{part}"


def _line(cells: Sequence[str], videos: Sequence[Video[Any]]) -> str:
    width = max(len("video"), *(len(video.name) for video in videos))
    return f"{cells[0]:{width}}" + "".join(f"  {cell:>8}" for cell in cells[1:])


def _plain(value: float) -> float | None:
    return value if value == value else None


def _known(joint: list[float]) -> list[float] | None:
    return joint if joint[0] >= 0 else None
