"""Decode every file of a data set once, write down what came out, and say which files are used.

Results go to a journal beside the manifest, which is made of it in one step at the end. A run that was killed resumes
from its journal, a later run from the manifest: files that have not changed are not decoded again, and the rules are
applied to what was measured.
"""

import glob
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import av
import numpy as np

from common.errors import InputError
from dataset_loader.decoding import OPEN, DecodeError, Video
from dataset_loader.preparing.jobs import journal, names_below, printable, processes, run, shard_name, take_shard
from dataset_loader.preparing.manifest import OK, Row, Rules, default_path, read_manifest, write_manifest
from dataset_loader.processes import MEMORY, SILENCE, Failure, alive
from dataset_loader.random_temporal_subsample import RandomTemporalSubsample
from dataset_loader.times import holes, resets, runs

UNEVEN = 0.2  # share by which distances in time differ in a video of variable rate; rounding to milliseconds is less
UNCERTAIN = ("hung", "crashed")  # may be the machine's fault: a later run tries these again


def validate(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    rules: Rules | None = None,
    jobs: int | None = None,
    shard: str = "1/1",
    quarantine: str | Path | None = None,
    again: bool = False,
    silence: float = SILENCE,
    memory: int = MEMORY,
) -> list[Row]:
    """Measure all videos below a folder, write the manifest, print a table; returns its rows, sorted by path.

    out: the manifest, by default beside the folder; a shard adds its numbers to the name, and a run over the whole
    folder takes over what its shards have found. rules: which files are "ok". jobs: processes, by default one for each
    core. quarantine: a folder, on the same disk, to which all files that are not "ok" are moved; without it nothing is
    moved. again: decode also what is known. silence: seconds after which a decoder that gives nothing is ended.
    memory: bytes that a process may take. Raises InputError.
    """
    rules, jobs = rules or Rules(), processes(jobs)
    folder, whole = Path(folder), Path(out) if out else default_path(folder)
    path = whole.with_name(f"{whole.stem}{shard_name(shard, before='.')}{whole.suffix}")
    mine = take_shard(names_below(folder), shard)
    _refuse_read_only(path.parent)
    if quarantine is not None:
        _check_quarantine(folder, Path(quarantine), shard)
    written = _written(whole, path)
    with journal(path) as found:
        # Under the lock: another run over the same folder may just have written them.
        known = {} if again else dict(written)
        for name, value in found.entries.items():
            with suppress(TypeError):
                known[name] = Row(**value)
        rows = {
            name: row
            for name in mine
            if (row := known.get(name)) and row.status not in UNCERTAIN and _same(row, identity(folder, name))
        }
        todo = [(str(folder), name) for name in mine if name not in rows]
        print(
            f"{len(mine)} files, {len(rows)} of them known; {len(todo)} to decode; the list will be {path}", flush=True
        )
        for (_, name), result in run(measure, todo, jobs=jobs, silence=silence, memory=memory):
            if isinstance(result, Failure):
                status = "hung" if result.kind == "hung" else "crashed"
                result = replace(identity(folder, name), status=status, reason=result.reason)
            rows[name] = result
            found.add(name, asdict(result))
        if quarantine is not None:  # what an earlier run has moved stays in the list
            moved = (row for row in written.values() if row.path not in rows)
            rows |= {row.path: row for row in moved if os.path.lexists(Path(quarantine) / row.path)}
        kept = {name: row.split for name, row in written.items()}
        done = [rules.judge(replace(row, split=kept.get(name, ""))) for name, row in sorted(rows.items())]
        write_manifest(path, done)
        found.remove()
    print(summary(done))
    print(f"the list is {path}")
    if quarantine is not None:
        moved_now = _move(folder, Path(quarantine), [row.path for row in done if row.status != OK])
        print(f"{moved_now} files moved to {quarantine}")
    return done


def measure(item: tuple[str, str]) -> Row:
    """Decode the whole of a file (its folder, its path in it) and measure it, without judging.

    A file from which no frame can be had comes back as "unreadable" with its reason. Times are those of the index that
    the loader uses; frames are counted as they leave the decoder.
    """
    folder, name = item
    path = os.path.join(folder, name)
    row = identity(folder, name)
    try:
        with Video(path) as video:
            alive()
            codec, lacking = _probe(path, len(video.index.packets))
            row = replace(row, codec=codec, **_timing(video.index.times), **_decode(video, lacking))
            height, width = video.frames([0])[0].shape[1:3]  # as the loader will see it, turned upright
            row = replace(row, width=width, height=height)
    except DecodeError as error:
        row = replace(row, status="unreadable", reason=error.reason)
    with suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            row = replace(row, hash=content_hash(path))
    return row


def _probe(path: str, found: int) -> tuple[str, int]:
    """The codec, and how many packets the file announces but lacks: only the tables of mp4 and mov can be believed.

    found: packets that were found. Those that an edit list leaves out, of a video that was trimmed, are not lacking.
    """
    with av.open(f"file:{path}", options={"ignore_editlist": "1"}, **OPEN) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        lacking = stream.frames if "mp4" in container.format.name.split(",") else 0
        if lacking > found:
            with suppress(av.FFmpegError, OSError):
                for packet in container.demux(stream):
                    lacking -= packet.size > 0
        else:
            lacking = 0
        return stream.codec_context.codec.canonical_name, max(0, lacking)


def _timing(times: np.ndarray) -> dict:
    """What the times tell, pauses and resets of the clock apart: these are listed by themselves."""
    stretches = [times[first:last] for first, last in runs(times)]
    gaps = np.concatenate([np.diff(stretch) for stretch in stretches])
    if len(gaps) == 0:
        return {}
    usual, span = float(np.median(gaps)), float(gaps.sum())
    paused = holes(times)
    return {
        "seconds": round(span + usual * len(stretches), 3),
        "fps": round(len(gaps) / span, 3),
        "variable": bool((np.abs(gaps - usual) > UNEVEN * usual).any()),
        "pauses": len(paused),
        "longest_pause": round(float((times[paused] - times[paused - 1]).max(initial=0.0)), 3),
        "resets": len(resets(times)),
        "pasts": int(RandomTemporalSubsample().pasts(times).sum()),
    }


def _decode(video: Video, lacking: int) -> dict:
    """Decode all frames, without turning them into RGB where that can be avoided; count them and what is damaged.

    Two of them are decoded by random access as well, as the loader does: they must be the same. lacking: packets that
    the file announces but lacks.
    """
    index = video.index
    if index.sequential:
        frames = 0
        for _ in video.each_frame():
            alive()
            frames += 1
        return {"frames": frames, "damaged": len(index.times) - frames}
    stamps = index.packets[index.positions].tolist()
    missing = set(stamps)
    compared = {stamps[number]: number for number in (len(stamps) // 2, 0)}
    in_order: dict[int, av.VideoFrame] = {}
    sizes: set[tuple[int, int]] = set()
    refused = patched = 0
    for _, packet in chain(video.packets_from(int(index.keyframes[0])), [(0, None)]):
        alive()
        if packet is not None:
            decoder = packet.stream.codec_context
        try:
            for frame in decoder.decode(packet):
                if frame.pts in missing:
                    missing.remove(frame.pts)
                    patched += frame.is_corrupt
                    sizes.add((frame.width, frame.height))
                    if frame.pts in compared:
                        in_order[compared[frame.pts]] = frame
        except av.FFmpegError:
            refused += 1
    if len(sizes) > 1:
        raise DecodeError(video.path, f"its frames change size, from {min(sizes)} to {max(sizes)} pixels")
    damaged = patched + max(refused, len(missing)) + lacking
    differing = 0
    for number, frame in in_order.items() if damaged == 0 else ():
        alive()
        differing += not np.array_equal(video.frames([number])[0][0], video.to_rgb(frame))
    return {
        "frames": len(stamps) - len(missing),
        "damaged": damaged,
        "differing": differing,
        "keyframe_spacing": int(np.diff([*index.keyframes, len(index.packets)]).max()),
    }


def identity(folder: str | Path, name: str) -> Row:
    """What tells whether a file is still the one that was read."""
    try:
        found = os.stat(os.path.join(folder, name))
    except OSError:
        return Row(name)
    return Row(name, bytes=found.st_size, modified=found.st_mtime_ns)


def _same(row: Row, other: Row) -> bool:
    return (row.bytes, row.modified) == (other.bytes, other.modified)


def content_hash(path: str) -> str:
    """BLAKE2b of a file's bytes, 128 bits, as `b2sum -l 128` prints it."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            alive()
    return digest.hexdigest()


def summary(rows: Sequence[Row]) -> str:
    """A table of the rows by status: files, hours, gigabytes, and the first of them with its reason."""
    lines = [f"{'status':10}  {'files':>7}  {'hours':>8}  {'GB':>8}  for example"]
    for status in [OK, *sorted({row.status for row in rows} - {OK}), "all"]:
        group = [row for row in rows if status in (row.status, "all")]
        hours, size = sum(row.seconds for row in group) / 3600, sum(row.bytes for row in group) / 1e9
        example = f"{group[0].path} {group[0].reason}" if group and status not in (OK, "all") else ""
        lines.append(f"{status:10}  {len(group):7}  {hours:8.2f}  {size:8.2f}  {printable(example)}".rstrip())
    return "\n".join(lines)


def _refuse_read_only(folder: Path) -> None:
    """Raise InputError for a folder that nobody may write to: the superuser could, and would not notice."""
    if folder.is_dir() and not folder.stat().st_mode & 0o222:
        raise InputError(f"{folder} is read-only; name another place for the list with --out")


def _written(whole: Path, path: Path) -> dict[str, Row]:
    """Rows by path of the manifest of an earlier run, or of those that shards have written."""
    shards = whole.parent.glob(f"{glob.escape(whole.stem)}.*-of-*{whole.suffix}") if path == whole else []
    found = [*sorted(shards), *([path] if path.exists() else [])]
    return {row.path: row for manifest in found for row in read_manifest(manifest)}


def _check_quarantine(folder: Path, quarantine: Path, shard: str) -> None:
    if shard != "1/1":
        raise InputError(
            "--quarantine does not go with --shard: moving files would change what the other shards see; "
            "run it without --shard when all shards are through, it takes over what they found"
        )
    inner, outer = quarantine.resolve(), folder.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise InputError(f"the quarantine {quarantine} and {folder} lie in one another; give a folder beside it")


def _move(folder: Path, quarantine: Path, names: Sequence[str]) -> int:
    """Move files to the same path below the quarantine; nothing there is overwritten. Returns how many were moved."""
    here = [name for name in names if os.path.lexists(folder / name)]
    clash = [name for name in here if os.path.lexists(quarantine / name)]
    if clash:
        raise InputError(f"{quarantine / clash[0]} is there already; nothing was moved ({len(clash)} such files)")
    for name in here:
        try:
            (quarantine / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder / name, quarantine / name)
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be moved to {quarantine} ({error.strerror}); both must be on one disk, and "
                "writable; the same command goes on with the rest"
            ) from error
    return len(here)
