"""Evaluation is a function: a benchmark, a source of features and a protocol in, the row of the papers' tables out.

from evaluation.benchmarks import BENCHMARKS
from evaluation.features import feature_source
from evaluation.run import evaluate
davis = BENCHMARKS["davis"](Path("DAVIS"))
evaluate(davis, feature_source("timm:vit_small_patch16_224.dino"), davis.protocol("dino"), out="results/dino")
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from common.errors import InputError
from evaluation.benchmark import Benchmark, Record
from evaluation.controls import Tracker
from evaluation.features import model_source
from evaluation.pictures import WriteVideo
from evaluation.protocols import Protocol
from evaluation.ranks import divide, place, wait_for_all
from evaluation.results import Store, digest, peak_memory
from evaluation.threads import Stoppable, finished
from evaluation.videos import Label, Video

Report = Callable[[str], None]


def records(
    benchmark: Benchmark,
    videos: Iterable[Video],
    source: Tracker,
    protocol: Protocol,
    *,
    batch: int = 1,
    store: Store | None = None,
) -> Iterator[Record]:
    """Follow the labels of each video and score them: its record. What `store` holds is not followed again.

    Threads score and write videos while the next one is followed: the labels of `threads.WORKERS` + 1 videos are in
    memory at most.
    """
    ended = Event()

    def follow(video: Video) -> Callable[[], Record]:
        record = store.record(video) if store else None
        if record is not None:
            return lambda: record
        video.check()
        start = time.perf_counter()
        results = Stoppable(benchmark.follow(video, source, protocol, batch=batch), ended)
        return partial(finish, video, results, time.perf_counter() - start)

    def finish(video: Video, results: Sequence[Label], seconds: float) -> Record:
        record = dict(
            video=video.name, frames=len(video), first=digest(video.first), seconds=seconds,
            memory=peak_memory(), scores=benchmark.score(video, results),
        )  # fmt: skip
        if store:
            store.keep(video, results, record)
        return record

    return finished(map(follow, videos), ended)


def score_results(
    benchmark: Benchmark,
    results: str | Path,
    out: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    report: Report = print,
) -> "Result":
    """Score what any method left in the folder `results`, in the layout of `Benchmark.export`; no features involved.

    Threads share the videos. Prints a line of each video and the row, and writes results.json and the files of the
    official tool into `out`, which must be empty or not exist.
    """
    videos = list(benchmark.videos(names))
    key = dict(benchmark=benchmark.key(), results=str(results))
    store = Store(benchmark, key, videos, out, None, False, None)
    line = _table(benchmark, videos, report)
    ended = Event()

    def score(video: Video) -> Record:
        video.check()
        start = time.perf_counter()
        scores = benchmark.score(video, Stoppable(benchmark.imported(Path(results), video), ended))
        seconds = time.perf_counter() - start
        return dict(video=video.name, frames=len(video), seconds=seconds, memory=peak_memory(), scores=scores)

    found: list[Record] = []
    for record in finished((partial(score, video) for video in videos), ended):
        found.append(record)
        line(record)
    row = benchmark.row({record["video"]: record["scores"] for record in found})
    report(final_row(row))
    store.finish(f"scored: {results}", row, final_row(row), found)
    return Result(row, found)


@dataclass(frozen=True)
class Result:
    """row: the numbers of the papers' tables, as fractions; records: one of each video."""

    row: dict[str, float]
    records: list[Record]


def evaluate(
    benchmark: Benchmark,
    source: Tracker,
    protocol: Protocol,
    out: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    frames: int | None = None,
    batch: int = 1,
    export: str | Path | None = None,
    pictures: bool = False,
    write_video: WriteVideo | None = None,
    settings: Mapping[str, Any] | None = None,
    report: Report = print,
) -> Result:
    """Evaluate all videos, print a line as each is done and the row at the end, and keep both in `out`.

    A video that `out` knows as finished is not followed again: repeat an interrupted call to go on. Under torchrun
    (RANK and WORLD_SIZE) the processes divide the videos and meet in `out` and `export`, which all must see; each
    returns the same result. Both folders must be empty or this run's own. Without `out` every process follows
    everything, and only `export` is written.

    names: only these videos. frames: only the first so many of each. batch: frames encoded at once. export: a folder
    for the results themselves, indexed PNGs as the official tool reads them (joints: JSON). pictures: strips and a
    page over all videos into `out`, and with `write_video(path, frames, fps)` videos. settings: further plain values on
    which the result depends, kept with it. report: takes the lines.
    """
    videos = first_frames(benchmark.videos(names), frames)
    key = dict(
        benchmark=benchmark.key(),
        protocol=asdict(protocol),
        source=dict(name=source.name, weights=source.weights),
        frames=frames,
        settings=dict(settings or {}),
    )
    store = Store(benchmark, key, videos, out, export, pictures or write_video is not None, write_video)
    rank, world = place() if out is not None else (0, 1)
    part = f"; the first {frames} frames of each video" if frames else ""
    part += "; matrix products in TF32" if (settings or {}).get("tf32") else ""
    heading = f"{source.name}; {benchmark.heading(protocol)}{part}"  # stands beside every number
    if rank == 0:
        report(heading)
    line = _table(benchmark, videos, report, heading=rank == 0)
    found: dict[str, Record] = {}
    for record in records(benchmark, divide(videos, world)[rank], source, protocol, batch=batch, store=store):
        found[record["video"]] = record
        line(record)
    if world > 1:
        found = wait_for_all(videos, store.record, found, report)
    ordered = [found[video.name] for video in videos]
    result = Result(benchmark.row({record["video"]: record["scores"] for record in ordered}), ordered)
    if rank == 0:
        report(f"{final_row(result.row)}\n{heading}" if result.row else "nothing to score against")
        store.finish(heading, result.row, final_row(result.row), ordered)
        if out is not None:
            report(f"results: {Path(out)}/")
    return result


def propagation_score(
    benchmark: Benchmark, protocol: Protocol, *, names: Sequence[str] = (), frames: int | None = None
) -> Callable[[Any], dict[str, float]]:
    """What a training loop is handed, to call once in a while: a model → the row of its scores.

    The model offers `encode` and `patch_size`; it is used where it lies and left in the mode in which it was.
    """
    videos = first_frames(benchmark.videos(names), frames)

    def score(model: Any) -> dict[str, float]:
        training, device = model.training, str(next(model.parameters()).device)
        try:
            source = model_source("the model in training", model, device=device)
            each = records(benchmark, videos, source, protocol)
            return benchmark.row({record["video"]: record["scores"] for record in each})
        finally:
            model.train(training)

    return score


def first_frames(videos: Iterable[Video], frames: int | None) -> list[Video]:
    """The videos' first frames; the whole of one that has no more, or for None."""
    if frames is not None and frames < 2:
        raise InputError(f"{frames} frames of each video were asked for; following needs at least 2")
    return [
        video
        if frames is None or frames >= len(video)
        else replace(video, paths=video.paths[:frames], lost=tuple(lost for lost in video.lost if lost.before < frames))
        for video in videos
    ]


def _table(
    benchmark: Benchmark, videos: Sequence[Video], report: Report, *, heading: bool = True
) -> Callable[[Record], None]:
    """Report the columns' names, and return what reports the line of a video."""
    width = max(len("video"), *(len(video.name) for video in videos))

    def line(name: str, *cells: str) -> None:
        report(f"{name:{width}}" + "".join(f"  {cell:>8}" for cell in cells))

    def show(record: Record) -> None:
        line(record["video"], *benchmark.cells(record["scores"]), f"{record['seconds']:.1f}")
        for note in record["scores"].get("notes", ()):
            report(f"{record['video']}: {note}")

    if heading:
        line("video", *benchmark.columns, "seconds")
    return show


def final_row(row: Mapping[str, float]) -> str:
    """The numbers under their names, in percent."""
    names = [max(name, f"{100 * value:.1f}", key=len) for name, value in row.items()]
    head = "  ".join(f"{name:>{len(wide)}}" for name, wide in zip(row, names, strict=True))
    values = "  ".join(f"{100 * value:>{len(wide)}.1f}" for value, wide in zip(row.values(), names, strict=True))
    return f"{head}\n{values}"
