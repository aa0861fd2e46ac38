"""`python -m benchmarks.loading`: pairs of frames a second and core, from every form of storage and by pytorchvideo.

All forms hold the same clips, and are measured in turn, in CPU time of this one process; a ratio is the median over the
repeats of ratios within a repeat. Every file is read as if for the first time: no index of it is remembered. What is
measured is what a worker does: open, draw, decode, crop, flip, and put into a batch.

Legend: V clips, R pairs drawn from a clip at a visit, S side of a crop in pixels.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
import torch

from common.errors import InputError
from dataset_loader import builtin_clips, find_videos, make_loader
from dataset_loader.dataset import PairDataset
from dataset_loader.decoding import Video
from dataset_loader.images import encode_jpeg
from dataset_loader.packed import Shard, write_shard
from dataset_loader.preparing.encoding import reencode, write_video
from dataset_loader.pytorchvideo import import_pytorchvideo
from dataset_loader.random_temporal_subsample import RandomTemporalSubsample
from dataset_loader.sources import open_source
from dataset_loader.transforms import View, apply_view, draw_crop

FPS = 30
CLIP_OF_THEIRS = 1.6  # seconds: SiamMAE's longest gap
WANTED = 9000  # pairs a second, for ViT-S/16 in bf16 on one H200
HOST = 16  # cores
KNOWN_ROUNDS = 32  # of pairs in memory, for the limit: a few would be decoded faster than new ones

THEIRS, THEIRS_WHOLE = "pytorchvideo, plain file", "pytorchvideo, whole clip"
FLOOR, LIMIT = "plain file, decode alone", "JPEG decode + resize alone"
PLAIN, PLAIN_2, PLAIN_4 = "plain file, R = 1", "plain file, R = 2", "plain file, R = 4"
SHORT, SHORT_4 = "short GOP, R = 1", "short GOP, R = 4"
FOLDERS, PACKED = "JPEG folders, R = 1", "packed shards, R = 1"
# (what is faster, than what, how many times at least)
DEMANDS = (
    (PLAIN, THEIRS, 5.0),
    (FLOOR, THEIRS, None),
    (PLAIN, FLOOR, None),
    (PLAIN_2, THEIRS, None),
    (PLAIN_4, THEIRS, None),
    (PLAIN, THEIRS_WHOLE, None),
    (PLAIN_4, PLAIN, 2.0),
    (SHORT, PLAIN, 4.0),
    (SHORT_4, PLAIN_4, None),
    (PACKED, LIMIT, 0.75),
    (PACKED, THEIRS, None),
)
MOST_MEMORY = 250  # MB of its own for a worker process


@dataclass(frozen=True)
class Settings:
    """clips: V. seconds, height, width, gop: of the clips. size: S. repeats: of all forms. least: CPU seconds in each.

    crf, short_gop, short_crf: of the plain files, and of those with many keyframes. b_frames: of the plain files, the
    most in a row (x264's own default is 3). batch_size: pairs.
    """

    clips: int = 8
    seconds: float = 10
    height: int = 256
    width: int = 340
    gop: int = 250
    b_frames: int = 2
    crf: int = 23
    short_gop: int = 4
    short_crf: int = 18
    size: int = 224
    repeats: int = 7
    least: float = 1.0
    batch_size: int = 64


SMOKE = Settings(clips=2, seconds=2, height=96, width=128, gop=30, size=64, repeats=1, least=0.01, batch_size=4)


@dataclass(frozen=True)
class Forms:
    """The same V clips in every form: a list of files, folders, or one shard. `megabytes` a clip by form."""

    plain: list[Path]
    short: list[Path]
    folders: Path
    packed: Path
    megabytes: dict[str, float]


def prepare_forms(files: Sequence[str | Path], out: Path, settings: Settings) -> Forms:
    """Make clips of equal length and size from videos, evenly chosen, and write them to `out` in every form."""
    chosen = np.unique(np.linspace(0, len(files) - 1, settings.clips).round().astype(int))
    plain, short = [], []
    for number in chosen:
        name = f"{number:03}.mp4"
        for form in ("plain", "short", f"folders/{number:03}"):
            (out / form).mkdir(parents=True, exist_ok=True)
        plain.append(out / "plain" / name)
        short.append(out / "short" / name)
        images = _frames(files[number], settings)
        write_video(plain[-1], images, FPS, gop=settings.gop, crf=settings.crf, b_frames=settings.b_frames)
        reencode(plain[-1], short[-1], gop=settings.short_gop, crf=settings.short_crf)
        times = []
        for n, (image, at) in enumerate(_decoded(plain[-1]), 1):
            (out / "folders" / f"{number:03}" / f"img_{n:05}.jpg").write_bytes(encode_jpeg(image))
            times.append(at)
        (out / "folders" / f"{number:03}" / "times.txt").write_text("".join(f"{at:.6f}\n" for at in times))
    packed = out / "clips.tar"
    bad = write_shard(packed, ((path.name, _decoded(path)) for path in plain))
    if bad:
        raise InputError(f"clips that were just written cannot be read: {bad}")
    everything = {"plain": plain, "short": short, "folders": list((out / "folders").rglob("*.jpg")), "packed": [packed]}
    sizes = {form: sum(path.stat().st_size for path in paths) / len(plain) / 1e6 for form, paths in everything.items()}
    return Forms(plain, short, out / "folders", packed, sizes)


def measure(files: Sequence[str | Path], settings: Settings, *, memory: bool = True) -> dict[str, Any]:
    """Prepare the forms in a temporary folder and measure them all; what `table` prints, ready for JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        forms = prepare_forms(files, Path(folder), settings)
        rounds, missing = _ways(forms, settings)
        for one_round in rounds.values():
            one_round(0)
        rates: dict[str, list[float]] = {name: [] for name in rounds}
        numbers = {name: itertools.count(1) for name in rounds}
        for repeat in range(settings.repeats):
            order = list(rounds)
            for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
                rates[name].append(_rate(rounds[name], numbers[name], settings.least, forms))
        uss = _memory(forms, settings) if memory else {}
    speeds = {}
    for name, values in rates.items():
        median, low, high = middle(values)
        speeds[name] = {"pairs_a_second": median, "low": low, "high": high, "megabytes_a_clip": _size(forms, name)}
        speeds[name] |= {"cores_for_wanted": WANTED / median, "fed_by_host": HOST * median}
    ratios = []
    for fast, slow, least in DEMANDS:
        if fast in rates and slow in rates:
            median, low, high = middle([a / b for a, b in zip(rates[fast], rates[slow], strict=True)])
            ratios.append({"of": fast, "to": slow, "ratio": median, "low": low, "high": high, "at_least": least})
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}, PyAV {av.__version__}",
        "settings": vars(settings),
        "clips": len(forms.plain),
        "speeds": speeds,
        "ratios": ratios,
        "missing": missing,
        "worker_megabytes": uss,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    settings = Settings(**result["settings"])
    lines = ["tiny clips: whether it works, not how fast"] if settings.height < Settings.height else []
    lines += [
        result["machine"],
        f"{result['clips']} clips of {settings.seconds:g} s, {settings.width}×{settings.height}, a keyframe every "
        f"{settings.gop} frames (short GOP: {settings.short_gop}), up to {settings.b_frames} B-frames in a row, crops "
        f"of {settings.size}; CPU time of one thread, median of {settings.repeats} paired runs",
        "",
        f"{'':28}{'pairs/s/core':>13}{'interval':>16}{'MB/clip':>9}{f'cores for {WANTED}/s':>18}"
        f"{f'{HOST} cores feed':>15}",
    ]
    for name, row in result["speeds"].items():
        size = "" if row["megabytes_a_clip"] is None else f"{row['megabytes_a_clip']:.2f}"
        spread = f"{row['low']:.1f} … {row['high']:.1f}"
        lines.append(
            f"{name:28}{row['pairs_a_second']:13.1f}{spread:>16}{size:>9}{row['cores_for_wanted']:18.0f}"
            f"{row['fed_by_host']:13.0f}/s"
        )
    lines += [f"{name}: not measured, {reason}" for name, reason in result["missing"].items()] + [""]
    for row in result["ratios"]:
        least, spread = row["at_least"], f"({row['low']:.2f} … {row['high']:.2f})"
        asked = "" if least is None else f", asked ≥ {least:g}: {'met' if row['ratio'] >= least else 'MISSED'}"
        lines.append(f"{row['of']} / {row['to']}: {row['ratio']:.2f} {spread}{asked}")
    if result["worker_megabytes"]:
        each = ", ".join(f"{name} {used:.0f}" for name, used in result["worker_megabytes"].items())
        fits = "met" if max(result["worker_megabytes"].values()) < MOST_MEMORY else "MISSED"
        lines.append(f"a worker process adds, in MB of its own (USS): {each}, asked < {MOST_MEMORY}: {fits}")
    return "\n".join(lines)


def middle(values: Iterable[float]) -> tuple[float, float, float]:
    """The median, and the second smallest and largest: of 7 values an interval for the true median at 87 %."""
    ordered = sorted(values)
    inner = ordered[1:-1] if len(ordered) > 3 else ordered
    return statistics.median(ordered), inner[0], inner[-1]


def _ways(forms: Forms, settings: Settings) -> tuple[dict[str, Callable[[int], int]], dict[str, str]]:
    """For each form a function that visits every clip once, given the number of the round, and says how many pairs it
    made; and what cannot be measured here, with the reason."""
    rounds: dict[str, Callable[[int], int]] = {}
    missing = {}
    try:
        rounds[THEIRS] = _theirs(forms, settings, subsample_first=True)
        rounds[THEIRS_WHOLE] = _theirs(forms, settings, subsample_first=False)
    except InputError as error:
        missing |= dict.fromkeys((THEIRS, THEIRS_WHOLE), str(error))
    sources: dict[str, Any] = dict.fromkeys((PLAIN, PLAIN_2, PLAIN_4), forms.plain)
    sources |= {SHORT: forms.short, SHORT_4: forms.short, FOLDERS: forms.folders, PACKED: forms.packed}
    for name, source in sources.items():
        rounds[name] = _ours(source, settings, repeated=int(name.rpartition("= ")[2]))
    rounds[FLOOR] = _decode_alone(forms)
    rounds[LIMIT] = _decode_and_resize(forms, settings)
    return rounds, missing


def _ours(source: Any, settings: Settings, repeated: int) -> Callable[[int], int]:
    temporal = RandomTemporalSubsample(repeated_sampling=repeated)
    dataset = PairDataset(open_source(source), temporal, image_size=settings.size)

    def one_round(number: int) -> int:
        batch = dataset.load_batch([(number, k) for k in range(len(dataset))])
        if batch["bad"]:
            raise InputError(f"clips that were just written cannot be read: {batch['bad']}")
        return len(batch["video"])

    return one_round


def _theirs(forms: Forms, settings: Settings, *, subsample_first: bool) -> Callable[[int], int]:
    """pytorchvideo's pipeline: of the clip two frames, then crop and flip, nothing normalised.

    Its own `create_video_transform` takes the frames first, too. Without `subsample_first` the whole clip is scaled to
    [0, 1], normalised, cropped and flipped, and two frames are taken last: what one pays for the wrong order.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, transforms = import_pytorchvideo("pytorchvideo.data"), import_pytorchvideo("pytorchvideo.transforms")
        from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

        two = transforms.UniformTemporalSubsample(2)
        shape = [RandomResizedCrop(settings.size, scale=(0.5, 1), antialias=True), RandomHorizontalFlip()]
        colour = [transforms.Div255(), transforms.Normalize((0.45,) * 3, (0.225,) * 3)]  # as in its tutorial
        steps = [two, *shape] if subsample_first else [*colour, *shape, two]
        dataset = data.LabeledVideoDataset(
            [(str(path), {"label": 0}) for path in forms.plain],
            data.make_clip_sampler("random", min(CLIP_OF_THEIRS, settings.seconds / 2)),
            transform=transforms.ApplyTransformToKey("video", Compose(steps)),
            decode_audio=False,
            decoder="pyav",
        )

    def one_round(number: int) -> int:
        pairs = sum(sample["video"].shape == (3, 2, settings.size, settings.size) for sample in dataset)
        if pairs != len(forms.plain):
            raise InputError(f"pytorchvideo gave {pairs} pairs of {len(forms.plain)} clips")
        return pairs

    return one_round


def _decode_alone(forms: Forms) -> Callable[[int], int]:
    """The least that an exact pair of a plain file can cost: packets in memory, nothing opened or turned into RGB.

    From the keyframe on every reference frame is decoded, since each may refer to those before it, and of the others
    only the pair itself.
    """
    sampler, generator = RandomTemporalSubsample(), np.random.default_rng(0)
    clips = []
    for path in forms.plain:
        with Video(path) as video:
            index, packets = video.index, [packet for _, packet in video.packets_from(0)]
            decoder = av.CodecContext.create("h264", "r")
            decoder.extradata, decoder.thread_type = packets[0].stream.codec_context.extradata, "NONE"
        clips.append((index, packets, decoder))

    def one_round(number: int) -> int:
        for index, packets, decoder in clips:
            positions = np.sort(index.positions[sampler.draw(index.times, generator)[0]]).tolist()
            for keyframe, run in index.runs(positions):
                decoder.flush_buffers()
                for position in range(keyframe, run[-1] + 1):
                    decoder.skip_frame = "DEFAULT" if position in (keyframe, *run) else "NONREF"
                    decoder.decode(packets[position])
                decoder.decode(None)
        return len(clips)

    return one_round


def _decode_and_resize(forms: Forms, settings: Settings) -> Callable[[int], int]:
    """The least that a pair of packed JPEGs can cost: bytes in memory, frames and crops known, nothing opened."""
    shard, sampler, generator = Shard(forms.packed), RandomTemporalSubsample(), np.random.default_rng(0)
    rounds: list[list[tuple[list[bytes], View]]] = []
    for _ in range(KNOWN_ROUNDS):
        rounds.append([])
        for k in range(len(shard)):
            with shard.open(k) as clip:
                images, _ = clip.frames(sampler.draw(clip.times, generator)[0])
            view = View(draw_crop(settings.height, settings.width, generator, flip=0))
            rounds[-1].append(([encode_jpeg(image) for image in images], view))

    def one_round(number: int) -> int:
        for pair, view in rounds[number % len(rounds)]:
            frames = np.stack([simplejpeg.decode_jpeg(data, "RGB") for data in pair])
            apply_view(frames, view, settings.size)
        return len(shard)

    return one_round


def _rate(one_round: Callable[[int], int], numbers: Iterator[int], least: float, forms: Forms) -> float:
    """Pairs per second of CPU time, over whole rounds that take so many seconds at least."""
    gc.collect()
    pairs, spent = 0, 0.0
    while spent < least:
        for path in [*forms.plain, *forms.short]:
            os.utime(path)  # a file that has been touched is a new one: its index is read again
        begin = time.process_time()
        pairs += one_round(next(numbers))
        spent += time.process_time() - begin
    return pairs / spent


def _memory(forms: Forms, settings: Settings) -> dict[str, float]:
    """The most that one worker process has of its own (USS) after each of a few batches, in MB, by form."""
    import psutil

    used = {}
    sources: dict[str, Any] = {"plain file": forms.plain, "short GOP": forms.short, "packed": forms.packed}
    for name, source in sources.items():
        temporal = RandomTemporalSubsample(repeated_sampling=4)
        dataset = PairDataset(open_source(source), temporal, image_size=settings.size, visits=64)
        before = set(multiprocessing.active_children())
        loader = make_loader(dataset, settings.batch_size, workers=1)
        batches = itertools.islice(loader, 6)
        next(batches)  # its process starts with the first
        (process,) = set(multiprocessing.active_children()) - before
        used[name] = max(psutil.Process(process.pid).memory_full_info().uss / 1e6 for _ in batches)
        del loader, batches
    return used


def _decoded(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    with Video(path) as video:
        yield from video.each_frame()


def _frames(path: str | Path, settings: Settings) -> Iterator[np.ndarray]:
    """The frames of a clip: the video's first ones, and then back and forth if they are too few."""
    count = round(settings.seconds * FPS)
    images = []
    for image, _ in itertools.islice(_decoded(Path(path)), count):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        images.append(frame.reformat(settings.width, settings.height, interpolation="BICUBIC").to_ndarray())
    return itertools.islice(itertools.cycle(images + images[-2:0:-1]), count)


def _size(forms: Forms, name: str) -> float | None:
    keys = {"plain": "plain", "short": "short", "JPEG folders": "folders", "packed": "packed", "pytorchvideo": "plain"}
    return next((forms.megabytes[form] for start, form in keys.items() if name.startswith(start)), None)


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", known.read_text(), re.M) if known.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a folder of videos; without it the built-in clips")
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    parser.add_argument("--clips", type=int, help="how many clips to make of them")
    parser.add_argument("--smoke", action="store_true", help="tiny clips, one run: only whether it works")
    given = parser.parse_args(arguments)
    settings = SMOKE if given.smoke else Settings()
    settings = settings if given.clips is None else replace(settings, clips=given.clips)
    result = measure(find_videos(given.data) if given.data else builtin_clips(), settings)
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
