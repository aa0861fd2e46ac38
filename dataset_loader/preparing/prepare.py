"""A data set in another form: folders of JPEGs for other tools, packed shards, or videos with many keyframes.

Each result is written in a temporary folder and renamed once it is complete, so a run that was killed resumes, and ends
with the same bytes. `prepared.json` records how a folder is made, and of which videos; another recipe is refused.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import flush
from common.words import counted
from dataset_loader.decoding import DecodeError
from dataset_loader.files import index_of
from dataset_loader.frame_folders import TIMES_FILE, FrameClip
from dataset_loader.images import encode_jpeg
from dataset_loader.packed import SUFFIX, write_shard
from dataset_loader.preparing.encoding import frames_of, reencode
from dataset_loader.preparing.jobs import (
    Journal,
    journal,
    names_below,
    printable,
    processes,
    run,
    shard_name,
    take_shard,
)
from dataset_loader.preparing.manifest import OK, default_path, read_manifest, write_table
from dataset_loader.preparing.recipe import SILENCE, USED, Recipe
from dataset_loader.processes import Failure, alive
from dataset_loader.sources import open_source

RECORD = "prepared.json"
FAILED = "failed.csv"
SUFFIXES = {"frames": "", "packed": SUFFIX, "gop": ".mp4"}
SAMPLES = 3  # videos that the estimate is made from
PAIRS = 9  # read from each of them


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
    a few videos and printed before it starts. The same call resumes after an interruption. jobs: processes, by default
    one for each core. every_file: do not look at the manifest. split: only those of "train" or "test", or "all";
    where the manifest has both, one of these must be said. silence: seconds without a frame after which a video is
    given up. Raises InputError; nothing that is there is overwritten.
    """
    folder, out, jobs = Path(folder), Path(out), processes(jobs)
    names = _chosen(folder, every_file, split)
    mine = take_shard(_tasks(names, recipe), shard)
    _claim(folder, out, recipe, names, split or "all", shard)
    _refuse_newer(folder, out, mine)
    listing = out / f"{shard_name(shard, after='.')}{FAILED}"
    with journal(listing) as found, _aside(out, shard) as aside:
        todo = [task for task in mine if not os.path.lexists(out / task.target)]
        print(f"{len(mine)} to make, {len(mine) - len(todo)} of them done before", flush=True)
        work = partial(run, jobs=jobs, silence=silence)
        if todo:
            _announce(folder, out, aside, recipe, todo, work, jobs)
        pieces = [Piece(folder, aside / f"{k}{SUFFIXES[recipe.form]}", recipe, task) for k, task in enumerate(todo)]
        for piece, result in work(_make, pieces):
            lost = isinstance(result, Failure)
            found.add(piece.task.target, dict.fromkeys(piece.task.sources, result.reason) if lost else result)
            if not lost:
                found.flush()  # what is left out of a shard must not be forgotten once the shard is there
                target = out / piece.task.target
                target.parent.mkdir(parents=True, exist_ok=True)
                if not os.path.lexists(target):  # else somebody has put theirs there meanwhile
                    if recipe.form == "packed":  # its index first, since a shard that is there counts as made
                        os.rename(index_of(piece.made), index_of(target))
                    os.rename(piece.made, target)
                    flush(target.parent)
        failed = _failed(out, mine, found)
        if failed:
            write_table(listing, ("path", "reason"), sorted(failed.items()))
        else:
            listing.unlink(missing_ok=True)
        found.remove()
    videos = sum(len(task.sources) for task in todo)
    print(f"{videos} videos tried, {len(failed)} of all could not be prepared; the result is {out}")
    for name, reason in list(failed.items())[:5]:
        print(printable(f"  {name} {reason}"))
    if failed:
        print(f"  … all of them in {listing}")
    return failed


def _chosen(folder: Path, every_file: bool, split: str | None) -> list[str]:
    """The names of the videos to prepare, relative to their folder, sorted."""
    manifest = default_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of videos")
    if every_file or not manifest.exists():
        if split not in (None, "all"):
            raise InputError(f"the split {split} is told by a manifest, {manifest}; write it with validate and split")
        print("no manifest is used: all files below the folder" + ("" if every_file else "; validate would check them"))
        return names_below(folder)
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
    makers: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        makers[str(PurePosixPath(name).with_suffix(SUFFIXES[recipe.form]))].append(name)
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
    record |= {"source": os.fsencode(outer).decode("utf-8", "replace"), "split": split}
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
def _aside(out: Path, shard: str) -> Iterator[Path]:
    """A temporary folder for results that are not complete; removed at the end, with those of runs that were killed."""
    prefix = f".unfinished.{shard.replace('/', '-of-')}."

    def clear() -> None:
        for left in out.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)

    clear()
    try:
        yield Path(tempfile.mkdtemp(prefix=prefix, dir=out))
    finally:
        clear()


@dataclass(frozen=True)
class Piece:
    """A task, and the place aside where it is made."""

    folder: Path
    made: Path
    recipe: Recipe
    task: Task


def _make(piece: Piece) -> dict[str, str]:
    """Make what a task asks for; returns {source: reason} of what is left out of a packed shard."""
    recipe, made = piece.recipe, piece.made
    looks: dict[str, Any] = dict(short_side=recipe.short_side, fps=recipe.fps)
    if recipe.form == "packed":
        videos = ((name, frames_of(piece.folder / name, **looks)) for name in piece.task.sources)
        return write_shard(made, videos, quality=recipe.quality)
    source = piece.folder / piece.task.sources[0]
    if recipe.form == "gop":
        reencode(source, made, gop=recipe.gop, crf=recipe.crf, **looks)
    else:
        _write_folder(made, source, frames_of(source, **looks), recipe.quality)
    return {}


def _write_folder(made: Path, source: Path, frames: Iterable[tuple[np.ndarray, float]], quality: int) -> None:
    """`img_00001.jpg` and so on, and `times.txt`: the time of each in seconds from the first frame on, one a line."""
    shutil.rmtree(made, ignore_errors=True)  # of a first try, whose process died
    made.mkdir()
    times = []
    for number, (image, at) in enumerate(frames, 1):
        (made / f"img_{number:05}.jpg").write_bytes(encode_jpeg(image, quality))
        times.append(at)
    if not times:
        raise DecodeError(source, "has no frame that can be decoded")
    (made / TIMES_FILE).write_text("".join(f"{at:.6f}\n" for at in times))
    try:
        FrameClip(str(made), fps=30)
    except DecodeError as error:
        raise DecodeError(source, f"would become a folder that cannot be loaded: {error.reason}") from error
    for path in [*made.iterdir(), made]:  # after all is written: the first flush takes most of the others along
        flush(path)


def _announce(
    folder: Path, out: Path, aside: Path, recipe: Recipe, todo: Sequence[Task], work: Callable, jobs: int
) -> None:
    """Prepare a few videos for trial, and print what all will take. Raises InputError if the disk is too small."""
    from tqdm import tqdm

    names = [name for task in todo for name in task.sources]
    chosen = [names[k] for k in sorted({round(k) for k in np.linspace(0, len(names) - 1, SAMPLES)})]
    made = [aside / f"trial{k}{SUFFIXES[recipe.form]}" for k in range(len(chosen))]
    pieces = [Piece(folder, path, recipe, Task("", (name,))) for path, name in zip(made, chosen, strict=True)]
    measured = [trial for _, trial in work(_try, pieces) if isinstance(trial, Trial)]
    if not measured:
        print(f"none of {len(chosen)} videos could be prepared for trial, so nothing is known of size and time")
        return
    everything = sum(_size(folder / name) for name in names)
    of_source = everything / sum(trial.source_bytes for trial in measured)
    size, seconds = (of_source * sum(getattr(trial, what) for trial in measured) for what in ("bytes", "seconds"))
    free = shutil.disk_usage(out).free
    own, now = (float(np.median([getattr(trial, what) for trial in measured])) for what in ("pair_source", "pair"))
    known, needed, room = (f"{tqdm.format_sizeof(count)}B" for count in (everything, size, free))
    print(
        f"{counted(len(names), 'video')} of {known} will become about {needed} ({room} free), in about "
        f"{tqdm.format_interval(seconds / jobs)} with {counted(jobs, 'process')}\n"
        f"a pair of frames then takes {now * 1000:.1f} ms to read, {1 / now:.0f} a second and core; "
        f"from the videos as they are {own * 1000:.1f} ms, {1 / own:.0f} a second\n"
        f"(measured on {len(measured)} of them)",
        flush=True,
    )
    if size > free:
        raise InputError(f"{out} is too small: about {needed} are needed, and {room} are free")


@dataclass(frozen=True)
class Trial:
    """What one video took: bytes, seconds of preparing, and of reading a pair before and after."""

    source_bytes: int
    bytes: int
    seconds: float
    pair_source: float
    pair: float


def _try(piece: Piece) -> Trial:
    made, source = piece.made, piece.folder / piece.task.sources[0]
    begin = time.perf_counter()
    if bad := _make(piece):
        raise DecodeError(source, *bad.values())
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (made.iterdir() if made.is_dir() else [made]))
    return Trial(source.stat().st_size, size, seconds, _seconds_a_pair(source), _seconds_a_pair(made))


def _seconds_a_pair(path: Path) -> float:
    """The median time to open what a video has become, or itself, and to read the frames of a pair."""
    source, taken = open_source([path]), []
    for k in range(PAIRS):
        alive()
        generator = np.random.default_rng(k)
        begin = time.perf_counter()
        with source.open(0) as clip:
            past = generator.integers(len(clip.times))
            future = np.searchsorted(clip.times, clip.times[past] + generator.integers(4, 49) / 30)
            clip.frames([int(past), min(int(future), len(clip.times) - 1)])
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def _failed(out: Path, tasks: Sequence[Task], found: Journal) -> dict[str, str]:
    """{source: reason} of what this run and, of shards that are there already, earlier ones could not prepare."""
    earlier: dict[str, str] = {}
    for listing in sorted(out.glob(f"*{FAILED}")):
        text = os.fsdecode(listing.read_bytes())
        earlier |= dict(list(csv.reader(io.StringIO(text, newline="")))[1:])
    failed: dict[str, str] = {}
    for task in tasks:
        if task.target in found.entries:
            failed |= found.entries[task.target]
        elif task.target.endswith(SUFFIX):
            failed |= {name: earlier[name] for name in task.sources if name in earlier}
    return failed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> int:
    """When a file or a folder was written, in ns; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
