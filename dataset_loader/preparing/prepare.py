"""A data set in another form: folders of JPEGs for other tools, packed shards, or videos with many keyframes.

What is made of a video, or of the videos of one shard, is written aside and renamed when it is whole; so a run that is
killed at any moment goes on where it was, and ends with the same bytes. `prepared.json` says how a folder was made, and
of which videos: it is only continued in the same way.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np

from common.errors import InputError
from common.files import flush
from dataset_loader.decoding import DecodeError, Video
from dataset_loader.files import find_videos
from dataset_loader.images import QUALITY, decode_image, encode_jpeg
from dataset_loader.packed import SUFFIX, Shard, write_shard
from dataset_loader.preparing.encoding import FAST_TO_DECODE, scaled, write_video
from dataset_loader.preparing.jobs import take_shard
from dataset_loader.preparing.manifest import OK, default_path, read_manifest
from dataset_loader.preparing.validate import printable, processes, progress
from dataset_loader.processes import Failure, alive, supervise
from dataset_loader.random_temporal_subsample import RandomTemporalSubsample

Form = Literal["frames", "packed", "gop"]
RECORD = "prepared.json"
FAILED = "failed.csv"
TIMES = "times.txt"
SAMPLES = 3  # videos that the estimate is made from
PAIRS = 9  # read from each of them
SILENCE = 120.0  # seconds: an encoder looks ahead before it gives its first frame


@dataclass(frozen=True)
class Recipe:
    """How a data set is prepared. What a form has no use for stays as it is.

    form: "frames", a folder of JPEGs for each video; "packed", shards; "gop", H.264 with a keyframe every few frames.
    fps: the frames nearest to a regular raster, in frames a second; None takes all of them. short_side: pixels; None
    keeps the size, and nothing is enlarged. quality: of JPEGs, to 100. gop: frames from one keyframe to the next.
    crf: H.264's constant quality, less is better. videos_per_shard: in packed shards.
    """

    form: Form
    fps: float | None = None
    short_side: int | None = 256
    quality: int = QUALITY
    gop: int = 4
    crf: int = 18
    videos_per_shard: int = 256

    def __post_init__(self) -> None:
        limits = {"fps": (1e-3, 1000), "short_side": (2, 16384), "quality": (1, 100), "gop": (1, 10**6), "crf": (0, 51)}
        for name, (low, high) in (limits | {"videos_per_shard": (1, 10**6)}).items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} is {value}; it must be {low:g} to {high:g}")


USED = {
    "frames": {"fps", "short_side", "quality"},
    "packed": {"fps", "short_side", "quality", "videos_per_shard"},
    "gop": {"fps", "short_side", "gop", "crf"},
}


@dataclass(frozen=True)
class Task:
    """What is made in one piece: `target`, a path in the new folder, of `sources`, paths in the old one."""

    target: str
    sources: tuple[str, ...]


def prepare(
    folder: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    jobs: int | None = None,
    shard: str = "1/1",
    every_file: bool = False,
    split: str | None = None,
    silence: float = SILENCE,
) -> dict[str, str]:
    """Write the videos of a folder to `out` in another form; returns {name: reason} of those that could not be.

    Videos are those that are "ok" in the manifest beside the folder, if there is one. What it will take is measured on
    a few videos and printed before it starts. The same call goes on after an interruption. jobs: processes, by default
    one for each core. every_file: do not look at the manifest. split: only those of "train" or "test", or "all";
    where the manifest has both, one of these must be said. silence: seconds without a frame after which a video is
    given up. Raises InputError; nothing that is there is overwritten.
    """
    folder, out, jobs = Path(folder), Path(out), processes(jobs)
    names = _chosen(folder, every_file, split)
    tasks = _tasks(names, recipe)
    mine = take_shard(tasks, shard)
    _claim(folder, out, recipe, names, split or "all", shard)
    _refuse_newer(folder, out, mine)
    with _staging(out, shard) as staging:
        todo = [task for task in mine if not os.path.lexists(out / task.target)]
        videos = sum(len(task.sources) for task in todo)
        print(f"{len(mine)} to make, {len(mine) - len(todo)} of them done before", flush=True)
        work = partial(supervise, jobs=jobs, silence=silence)
        if todo:
            _announce(folder, out, staging, recipe, todo, work, jobs)
        failed: dict[str, str] = {}
        items = [(str(folder), str(out), str(staging / str(k)), recipe, task) for k, task in enumerate(todo)]
        for item, result in progress(work(_make, items), len(todo)):
            if isinstance(result, Failure) and result.kind == "full":
                raise InputError(f"{out}: the disk is full; make room, and the same command goes on")
            if isinstance(result, Failure):
                failed |= dict.fromkeys(item[-1].sources, result.reason)
        for task in mine:
            failed |= _read_failed(out / f"{task.target}.{FAILED}")
        part = "" if shard == "1/1" else f"{shard.replace('/', '-of-')}."
        _write_failed(out / f"{part}{FAILED}", failed, staging / FAILED)
    print(f"{videos} videos tried, {len(failed)} of all could not be prepared; the result is {out}")
    for name, reason in list(failed.items())[:5]:
        print(printable(f"  {name} {reason}"))
    if failed:
        print(f"  … all of them in {out / f'{part}{FAILED}'}")
    return failed


def at_rate(frames: Iterable[tuple[np.ndarray, float]], fps: float | None) -> Iterator[tuple[np.ndarray, float]]:
    """Of (image, time in seconds) those nearest to a raster of `fps` from the first on, each with its own time.

    A frame is given once, also where the raster is finer than the frames.
    """
    if fps is None:
        yield from frames
        return
    before: tuple[np.ndarray, float] | None = None
    start = wanted = 0.0
    number, given = 0, None
    for frame in frames:
        if before is None:
            start = wanted = frame[1]
        else:
            while wanted <= frame[1]:
                nearest = before if wanted - before[1] <= frame[1] - wanted else frame
                if nearest[1] != given:
                    given = nearest[1]
                    yield nearest
                number += 1
                wanted = start + number / fps
        before = frame
    if before is not None and before[1] != given and wanted <= before[1] + 0.5 / fps:
        yield before


def _chosen(folder: Path, every_file: bool, split: str | None) -> list[str]:
    """The names of the videos to prepare, relative to their folder, sorted."""
    manifest = default_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of videos")
    if every_file or not manifest.exists():
        if split not in (None, "all"):
            raise InputError(f"the split {split} is told by a manifest, {manifest}; write it with validate and split")
        print("no manifest is used: all files below the folder" + ("" if every_file else "; validate would check them"))
        return [os.path.relpath(path, folder).replace(os.sep, "/") for path in find_videos(folder)]
    rows = read_manifest(manifest)
    used = [row for row in rows if row.status == OK and split in (None, "all", row.split)]
    if not used:
        raise InputError(f"{manifest} has no video that is {OK}" + (f" and of the split {split}" if split else ""))
    sides = sorted({row.split for row in used if row.split}, reverse=True)
    if split is None and len(sides) > 1:
        raise InputError(
            f"{manifest} divides its videos into {' and '.join(sides)}: choose "
            f"{' or '.join(f'--split {side}' for side in sides)}, each with its own --out, or mix them with --split all"
        )
    print(f"{len(used)} of the {len(rows)} files in {manifest}: those that are {OK}" + (f", {split}" if split else ""))
    return sorted(row.path for row in used)


def _tasks(names: Sequence[str], recipe: Recipe) -> list[Task]:
    if recipe.form == "packed":
        size = recipe.videos_per_shard
        chunks = [tuple(names[first : first + size]) for first in range(0, len(names), size)]
        return [Task(f"{number:05}{SUFFIX}", chunk) for number, chunk in enumerate(chunks)]
    suffix = ".mp4" if recipe.form == "gop" else ""
    makers: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        makers[str(PurePosixPath(name).with_suffix(suffix))].append(name)
    for target, sources in makers.items():
        inside = next((str(above) for above in PurePosixPath(target).parents if str(above) in makers), None)
        others = sources[1:] or (makers[inside] if inside else [])
        if others:
            raise InputError(f"{sources[0]} and {others[0]} would both become {inside or target}; rename one of them")
    return [Task(target, tuple(sources)) for target, sources in makers.items()]


def _claim(folder: Path, out: Path, recipe: Recipe, names: Sequence[str], split: str, shard: str) -> None:
    """Make `out`, with the record of what is made there; or see that it is the same that was begun there."""
    inner, outer = out.resolve(), folder.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise InputError(f"{out} and {folder} lie in one another: videos would be mixed up; give a folder beside it")
    record: dict[str, Any] = {"form": recipe.form} | {
        key: value for key, value in asdict(recipe).items() if key in USED[recipe.form]
    }
    record |= {"source": str(outer), "split": split}
    if recipe.form == "packed":  # which videos a shard holds depends on all of them
        text = "\0".join(f"{name}\0{_size(folder / name)}" for name in names)
        record["videos"] = hashlib.blake2b(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    # Of each shard its own: the same shard overwrites what it left when it was killed, and no other.
    aside = out / f".{RECORD}.{shard.replace('/', '-of-')}"
    try:
        before = json.loads((out / RECORD).read_text())
        aside.unlink(missing_ok=True)
    except FileNotFoundError:
        if out.exists() and not all(path.name.startswith(f".{RECORD}.") for path in out.iterdir()):
            raise InputError(f"{out} is there already, and was not made by prepare; give another --out") from None
        try:
            out.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(record, indent=1) + "\n")
            flush(aside)
            os.replace(aside, out / RECORD)
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error.strerror})") from error
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{out / RECORD} cannot be read ({error}); give another --out") from error
    differing = [key for key in sorted(record.keys() | before.keys()) if record.get(key) != before.get(key)]
    if differing:
        changes = ", ".join(f"{key} was {before.get(key)} and is now {record.get(key)}" for key in differing)
        raise InputError(f"{out} was begun in another way: {changes}; give another --out")


def _refuse_newer(folder: Path, out: Path, tasks: Sequence[Task]) -> None:
    """Raise InputError if a video has changed since its result was made, which is not made again."""
    newer = [
        source
        for task in tasks
        if (made := _modified(out / task.target))
        for source in task.sources
        if _modified(folder / source) > made
    ]
    if newer:
        raise InputError(
            f"{folder / newer[0]} is newer than what was made of it in {out} ({len(newer)} such videos); nothing there "
            "is overwritten: give another --out"
        )


@contextmanager
def _staging(out: Path, shard: str) -> Iterator[Path]:
    """A folder for what is not yet whole, empty at the start and gone at the end; one process at a time has it."""
    import fcntl

    path = out / f".unfinished.{shard.replace('/', '-of-')}"
    try:
        path.mkdir(exist_ok=True)
        held = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another run of prepare is at work there; wait until it ends") from None
        try:
            _empty(path)
            aside = path / uuid.uuid4().hex  # what a process of a killed run still writes must not come among it
            aside.mkdir()
            yield aside
        finally:
            _empty(path)
            path.rmdir()
    finally:
        os.close(held)


def _empty(folder: Path) -> None:
    """Remove what is in a folder, also while a process that was just killed is adding to it."""
    for _ in range(50):
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        if not any(folder.iterdir()):
            return
        time.sleep(0.1)
    raise InputError(f"{folder} cannot be emptied; is another program at work there?")


def _make(item: tuple[str, str, str, Recipe, Task]) -> None:
    """Make one task's result aside, and give it its name."""
    folder, out, aside, recipe, task = item
    made = Path(aside)
    sources = [Path(folder, name) for name in task.sources]
    target = Path(out, task.target)
    if recipe.form == "packed":
        made = made.with_suffix(SUFFIX)
        bad = _write_packed(made, dict(zip(task.sources, sources, strict=True)), recipe)
        if bad:  # before the shard: what is left out of it must not be forgotten
            _write_failed(Path(out, f"{task.target}.{FAILED}"), bad, made.with_suffix(".csv"))
    else:
        made = _write_one(sources[0], made, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):  # else a process of a run that was killed has come first, with the same
        os.rename(made, target)
    flush(target.parent)


def _write_one(source: Path, made: Path, recipe: Recipe) -> Path:
    """Write one video at `made`, or with a suffix that its form needs; returns where it is."""
    if recipe.form == "packed":
        made = made.with_suffix(SUFFIX)
        bad = _write_packed(made, {"video": source}, recipe)
        if bad:
            raise DecodeError(source, bad["video"])
    elif recipe.form == "gop":
        made = made.with_suffix(".mp4")
        pairs, again = tee(_frames(source, recipe))  # in step, so that one frame at a time is held
        times = cast(Sequence[float], (at for _, at in again))
        images = (image for image, _ in pairs)
        write_video(made, images, times, gop=recipe.gop, crf=recipe.crf, options=FAST_TO_DECODE)
    else:
        _write_folder(made, source, recipe)
    return made


def _write_packed(made: Path, sources: dict[str, Path], recipe: Recipe) -> dict[str, str]:
    videos = ((name, _frames(source, recipe)) for name, source in sources.items())
    return write_shard(made, videos, quality=recipe.quality)


def _write_folder(made: Path, source: Path, recipe: Recipe) -> None:
    """`img_00001.jpg` and so on, and `times.txt`: the time of each in seconds from the first frame on, one a line."""
    shutil.rmtree(made, ignore_errors=True)  # of a first try, whose process died
    made.mkdir()
    times = []
    for number, (image, at) in enumerate(_frames(source, recipe), 1):
        (made / f"img_{number:05}.jpg").write_bytes(encode_jpeg(image, recipe.quality))
        times.append(at)
    if not times:
        raise DecodeError(source, "has no frame that can be decoded")
    (made / TIMES).write_text("".join(f"{at:.6f}\n" for at in times))
    for path in [*made.iterdir(), made]:  # after all is written: the first flush takes most of the others along
        flush(path)


def _frames(source: Path, recipe: Recipe) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a video as a recipe wants them, with their times from the first one on."""
    with Video(source) as video:
        start = float(video.index.times[0])
        for image, at in at_rate(video.each_frame(), recipe.fps):
            alive()
            side = None if recipe.short_side is None else min(recipe.short_side, *image.shape[:2])
            yield scaled(image, side), at - start


def _announce(
    folder: Path, out: Path, staging: Path, recipe: Recipe, todo: Sequence[Task], work: Callable, jobs: int
) -> None:
    """Prepare a few videos for trial, and print what all will take. Raises InputError if the disk is too small."""
    names = [name for task in todo for name in task.sources]
    chosen = [names[k] for k in sorted({round(k) for k in np.linspace(0, len(names) - 1, SAMPLES)})]
    items = [(str(folder / name), str(staging / f"trial{k}"), recipe) for k, name in enumerate(chosen)]
    measured = [trial for _, trial in work(_try, items) if isinstance(trial, Trial)]
    if not measured:
        print(f"none of {len(chosen)} videos could be prepared for trial, so nothing is known of size and time")
        return
    everything = sum(_size(folder / name) for name in names)
    of_source = everything / sum(trial.source_bytes for trial in measured)
    size, seconds = (of_source * sum(getattr(trial, what) for trial in measured) for what in ("bytes", "seconds"))
    free = shutil.disk_usage(out).free
    own, now = (float(np.median([getattr(trial, what) for trial in measured])) for what in ("pair_source", "pair"))
    print(
        f"{len(names)} videos of {_bytes(everything)} become about {_bytes(size)} ({_bytes(free)} free), in "
        f"{_duration(seconds / jobs)} with {jobs} processes\n"
        f"a pair of frames then takes {now * 1000:.1f} ms to read, {1 / now:.0f} a second and core; "
        f"from the videos as they are {own * 1000:.1f} ms, {1 / own:.0f} a second\n"
        f"(measured on {len(measured)} of them)",
        flush=True,
    )
    if size > free:
        raise InputError(f"{out} is too small: about {_bytes(size)} are needed, and {_bytes(free)} are free")


@dataclass(frozen=True)
class Trial:
    """What one video took: bytes, seconds of preparing, and of reading a pair before and after."""

    source_bytes: int
    bytes: int
    seconds: float
    pair_source: float
    pair: float


def _try(item: tuple[str, str, Recipe]) -> Trial:
    source, aside, recipe = Path(item[0]), Path(item[1]), item[2]
    begin = time.perf_counter()
    made = _write_one(source, aside, recipe)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (made.iterdir() if made.is_dir() else [made]))
    return Trial(source.stat().st_size, size, seconds, _seconds_a_pair(source), _seconds_a_pair(made))


def _seconds_a_pair(path: Path) -> float:
    """The median time to open what a video has become, or itself, and to read the frames of a pair."""
    sampler, taken = RandomTemporalSubsample(), []
    for k in range(PAIRS):
        alive()
        begin = time.perf_counter()
        generator = np.random.default_rng(k)
        if path.is_dir():
            times = np.loadtxt(path / TIMES, ndmin=1)
            for number in sampler.draw(times, generator)[0]:
                decode_image((path / f"img_{number + 1:05}.jpg").read_bytes())
        elif path.suffix == SUFFIX:
            with Shard(path).open(0) as clip:
                clip.frames(sampler.draw(clip.times, generator)[0])
        else:
            with Video(path) as video:
                video.frames(sampler.draw(video.index.times, generator)[0])
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def _write_failed(path: Path, failed: dict[str, str], aside: Path) -> None:
    """A table of (path, reason), sorted, made `aside`; none where nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *sorted(failed.items())])
    aside.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))
    flush(aside)
    os.replace(aside, path)


def _read_failed(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return {name: reason for name, reason in list(csv.reader(io.StringIO(text, newline="")))[1:]}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> int:
    """When a file or a folder was written, in ns; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _bytes(count: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= u), (1e3, "kB"))
    return f"{count / unit:.3g} {name}"


def _duration(seconds: float) -> str:
    unit, name = next(((u, n) for u, n in ((3600, "hours"), (60, "minutes")) if seconds >= 2 * u), (1, "seconds"))
    return f"{seconds / unit:.1f} {name}"
